# SPDX-License-Identifier: Apache-2.0
"""No call waits with the GIL held: other threads run while the core is busy."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A step holds the cache's lock until a kernel on the emulated device has ended, which ends
# when a thread that needs the GIL says so. In a process of its own: a call that keeps the
# GIL meanwhile never returns.
PROGRAM = """
import sys, threading
from pyvattn import BusyError, CacheSpec, KVCache, _native
emulated = _native.emulated_cuda
driver = _native.make_driver("stock-uvm-emulated", 64 << 10)
spec = CacheSpec(1, 1, 256, "float32", max_slots=2, max_tokens=640, guard_tokens=0)
cache = KVCache.on_driver(spec, driver, layout="layer", memory=20 * 65536, background=False)
used, slot = cache.acquire(), cache.acquire()
cache.step({used: 640})
stream = emulated.make_stream(0)
kernel = emulated.launch_kernel(0, stream)
# From here on all pages that there are belong to a slot that the kernel may still read.
cache.release(used, after=stream)
def grow():
    while True:
        try:
            return cache.step({slot: 640})
        except BusyError:
            pass
step = threading.Thread(target=grow)
step.start()
try:
    while True:
        cache.step({slot: 0})
except BusyError:
    pass
calls = threading.Event()
def release():
    calls.wait()
    emulated.release_kernel(kernel)
threading.Thread(target=release).start()
calls.set()
CALL
step.join()
assert cache.length(slot) == 640
cache.close()
"""


@pytest.mark.parametrize(
    "call",
    [
        "cache.length(slot)",
        "cache.live_slots()",
        "cache.layer(0, lambda view: view)",
        "cache.stats()",
        "cache.can_admit(1)",
        "cache.acquire()",
        "cache.prefetch({slot: 640})",
        "fence = _native.stream_fence('stock-uvm-emulated', 0, stream); fence.wait()",
        "emulated.holdings()",
    ],
)
def test_a_call_that_waits_for_the_core_lets_others_run(call):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("CALL", call)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
