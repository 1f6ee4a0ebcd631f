# SPDX-License-Identifier: Apache-2.0
"""What the operating system allows a process: mappings, open files, addresses."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPEN = """
import ctypes, resource, pyvattn
from pyvattn import CacheSpec, KVCache
def opened(**changes):
    spec = CacheSpec(2, 4, 64, "float32", **{"max_slots": 64, "max_tokens": 16, "guard_tokens": 0,
                                             **changes})
    return KVCache(spec, device="cpu", memory="64MiB", layout="token", page_size="64K",
                   background=False)
"""

# Makes mappings until the process may have no more.
USE_UP = """
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
most = int(open("/proc/sys/vm/max_map_count").read())
assert most < 1 << 20, "too many to use up"
start = libc.mmap(None, 2 * most * 4096, 1, 0x4022, -1, 0)
used = 0
while libc.mprotect(start + (2 * used + 1) * 4096, 4096, 3) == 0:
    used += 1
while libc.mmap(None, 4096, 3 if used % 2 else 1, 0x22, -1, 0) != 2**64 - 1:
    used += 1
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", OPEN + program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_closing_works_where_there_are_no_mappings_left():
    run(
        """
cache = opened()
live = {cache.acquire(): 16 for _ in range(64)}
cache.step(live)
"""
        + USE_UP
        + """
cache.close()
assert cache.stats().pages_allocated == 0
"""
    )


def test_a_resize_that_finds_no_mappings_left_leaves_enough_for_closing():
    said = run(
        """
cache = opened()
slots = [cache.acquire() for _ in range(64)]
cache.step(dict.fromkeys(slots, 16))
for slot in slots[::2]:
    cache.release(slot)
"""
        + USE_UP
        + """
try:
    cache.resize("2MiB")
except pyvattn.Error as error:
    print(error)
cache.close()
assert cache.stats().pages_allocated == 0
"""
    )
    assert "vm.max_map_count" in said


@pytest.mark.parametrize("layout", ["token", "layer"])
def test_a_pool_with_rows_closes_where_there_are_no_mappings_left(layout):
    run(
        f"""
spec = CacheSpec(20, 4, 64, "float32", max_slots=64, max_tokens=16, guard_tokens=0)
pool = pyvattn.BlockPool(spec, device="cpu", layout={layout!r}, memory="64MiB", page_size="64K")
rows = pyvattn.RowMap(pool)
for _ in range(8):
    rows.open(pool.allocate(1))
rows.flush()
"""
        + USE_UP
        + """
pool.close()
assert pool.stats().blocks_allocated == 0
"""
    )


def test_a_child_of_a_process_without_mappings_left_keeps_its_writes_to_itself():
    run(
        """
import os
cache = opened()
slot = cache.acquire(16)
cache.step({slot: 16})
key = cache.layer(0)[0][slot]
"""
        + USE_UP
        + """
child = os.fork()
if child == 0:
    key[:16] = 7
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert not key[:16].any()
"""
    )


def test_a_step_that_finds_no_mappings_left_says_so_and_closing_works():
    said = run(
        """
cache = opened(max_tokens=256)
slots = [cache.acquire() for _ in range(32)]
cache.step(dict.fromkeys(slots, 1))
"""
        + USE_UP
        + """
try:
    for slot in slots:
        cache.step({slot: 256})
        cache.step({slot: 1})
        cache.release(slot)
        cache.resize("2MiB")
        cache.resize("64MiB")
except pyvattn.Error as error:
    print(type(error).__name__, error)
cache.close()
assert cache.stats().pages_allocated == 0
"""
    )
    assert not said or ("vm.max_map_count" in said and "resize()" not in said)


def test_a_cache_for_which_there_are_no_addresses_says_what_helps():
    said = run(
        """
resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
try:
    opened(max_slots=1 << 16, max_tokens=1 << 12)
except pyvattn.OutOfMemory as error:
    print(error)
"""
    )
    assert "lower max_slots or max_tokens" in said
    assert "ulimit -v" in said
    assert "max_map_count" not in said


def test_a_step_that_may_open_no_more_files_says_what_helps():
    said = run(
        """
cache = opened()
slot = cache.acquire()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 64))
try:
    cache.step({slot: 16})
except pyvattn.DriverError as error:
    print(error.status, error)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
cache.step({slot: 16})
cache.close()
"""
    )
    assert said.startswith("EMFILE")
    assert "ulimit -n" in said
