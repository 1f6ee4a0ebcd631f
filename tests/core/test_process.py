# SPDX-License-Identifier: Apache-2.0
"""Fork, SIGKILL and the end of the interpreter, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

SETUP = """
import os, numpy, pyvattn
spec = pyvattn.CacheSpec(2, 4, 64, "float32", max_slots=4, max_tokens=1024)
cache = pyvattn.KVCache(spec, device="cpu", memory="64MiB", layout="layer")
slot = cache.acquire()
cache.step({slot: 500})
k, v = cache.layer(0, numpy.from_dlpack)
k[slot, :500] = 1
"""


def run(program, *options, before=""):
    return subprocess.run(
        [sys.executable, *options, "-c", before + SETUP + program],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_forked_child_is_told(tmp_path):
    done = run(
        """
pid = os.fork()
if pid == 0:
    told = 0
    for call in (lambda: cache.step({slot: 501}), lambda: cache.acquire(), cache.stats,
                 lambda: cache.release(slot), cache.drain, cache.close,
                 lambda: cache.layer(0, numpy.from_dlpack)):
        try:
            call()
        except pyvattn.ForkError as error:
            told += "after fork()" in str(error)
    os._exit(told)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
cache.step({slot: 501})
cache.close()
"""
    )
    assert done.returncode == 0, done.stderr


def test_what_a_forked_child_writes_is_its_own():
    """Its tensors have nothing of the parent's behind them, nor has its child."""
    done = run(
        """
def own():
    assert not k[slot].any()
    k[slot, :1000] = 2
    v[:] = 3
pid = os.fork()
if pid == 0:
    own()
    if os.fork() == 0:
        assert (v == 3).all()
        v[:] = 4
        os._exit(0)
    os.wait()
    assert (v == 3).all()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert (k[slot, :500] == 1).all()
assert not v[slot, :500].any()
cache.step({slot: 1000})
cache.close()
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_child_gets_no_tensors_that_torch_had_before():
    pytest.importorskip("torch", reason="torch is not installed")
    done = run(
        """
cache.layer(0)
pid = os.fork()
if pid == 0:
    try:
        cache.layer(0)
    except pyvattn.ForkError:
        os._exit(7)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
cache.close()
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_child_ends_quietly_and_leaves_the_parent_alone():
    done = run(
        """
pid = os.fork()
if pid == 0:
    import sys
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert (k[slot, :500] == 1).all()
cache.step({slot: 1000})
cache.close()
""",
        # Python 3.12 and later warn of any fork() where there are threads.
        "-W",
        "ignore::DeprecationWarning",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize(
    "end",
    [
        "",
        "cache.close()",
        "del cache",
        "del k, v; cache.close()",
        "cache.close(); del cache; k = v = None",
        "import atexit; atexit.register(cache.close)",
        "del cache; x = float(k.sum())",
    ],
)
def test_every_order_of_ending_is_clean(end):
    done = run(end)
    assert done.returncode == 0, done.stderr


def test_what_is_open_at_exit_is_named():
    done = run("", "-W", "always::ResourceWarning")
    assert "KVCache 2 layers" in done.stderr
    assert "was not closed and held" in done.stderr


def test_sigkill_leaves_nothing_behind():
    """The kernel takes slabs and mappings back with the process."""
    program = SETUP + "print(os.getpid(), flush=True)\nwhile True: cache.step({slot: 1000})"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        slabs = _slabs_of(pid)
        assert slabs
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not Path(f"/proc/{pid}").exists()
    for other in Path("/proc").glob("[0-9]*"):
        assert not slabs & _slabs_of(int(other.name))


def _slabs_of(pid: int) -> set[tuple[int, int]]:
    """Device and inode of every memfd of ours that a process holds."""
    slabs = set()
    with suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if "pyvattn-slab" in os.readlink(fd):
                    info = os.stat(fd)
                    slabs.add((info.st_dev, info.st_ino))
    return slabs


SERVE = """
import threading
serving = threading.Event()
def serve():
    n = 0
    while True:
        cache.step({slot: n % 1000})
        k[slot, :n % 1000] = 1
        v[slot, :n % 1000] = k[slot, :n % 1000]
        cache.length(slot), cache.stats(), cache.can_admit(5)
        other = cache.acquire()
        cache.release(other)
        serving.set()
        n += 7
cache.step({slot: 1000})
thread = threading.Thread(target=serve, daemon=True)
thread.start()
serving.wait()
"""


@pytest.mark.parametrize("attempt", range(4))
def test_a_daemon_thread_that_serves_at_exit_ends_quietly(attempt):
    done = run(SERVE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_daemon_thread_can_still_be_joined_at_exit():
    """By a handler that was there before the cache, and so runs after ours."""
    done = run(
        SERVE,
        before="import atexit; atexit.register(lambda: thread.join())",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


POOL = """
spec = pyvattn.CacheSpec(2, 4, 64, "float32", max_slots=4, max_tokens=1024)
pool = pyvattn.BlockPool(spec, device="cpu", memory="64MiB", layout="layer")
rows = pyvattn.RowMap(pool)
cache.close()
"""

SERVE_ROWS = (
    POOL
    + """
import threading
serving = threading.Event()
blocks = pool.allocate(8)
row = rows.open(blocks)
rows.flush()
keys, _ = rows.layer(0, numpy.from_dlpack)
def serve():
    while True:
        keys[row, :500] = 1
        other = rows.open(blocks[:3])
        rows.flush()
        rows.blocks(row), rows.open_rows(), pool.stats()
        rows.close(other)
        pool.release(pool.allocate(2))
        serving.set()
thread = threading.Thread(target=serve, daemon=True)
thread.start()
serving.wait()
"""
)


def test_a_pool_that_is_open_at_exit_is_named():
    done = run(POOL + "pool.allocate(3)", "-W", "always::ResourceWarning")
    assert "BlockPool 2 layers" in done.stderr
    assert "was not closed and held" in done.stderr


@pytest.mark.parametrize("attempt", range(4))
def test_a_daemon_thread_that_drives_rows_at_exit_ends_quietly(attempt):
    done = run(SERVE_ROWS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_pool_that_is_open_is_closed_at_exit():
    done = run(
        POOL,
        before="""
import atexit
def late():
    print(pool.closed)
    for call in (lambda: pool.allocate(1), lambda: rows.open([])):
        try:
            call()
        except pyvattn.ClosedError:
            print("told")
atexit.register(late)
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\ntold\ntold\n", "")


def test_what_is_open_is_closed_at_exit():
    """For handlers that run after ours; the thread that ends the process is told."""
    done = run(
        "",
        before="""
import atexit
def late():
    print(cache.closed)
    try:
        cache.acquire()
    except pyvattn.ClosedError:
        print("told")
atexit.register(late)
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\ntold\n", "")
