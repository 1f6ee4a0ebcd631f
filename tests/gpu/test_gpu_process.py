# SPDX-License-Identifier: Apache-2.0
"""Resets, faults, forks and exits: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

START = """
import torch
from pyvattn import CacheSpec, KVCache
from pyvattn.errors import DriverError, DriverUnavailable, ForkError
spec = CacheSpec(layers=2, kv_heads=8, head_dim=128, dtype="bfloat16", max_slots=4, max_tokens=8192)
def open_cache():
    return KVCache(spec, device="cuda", driver="cumem", layout="layer", memory="1GiB")
"""

BACKED = """
cache = open_cache()
slot = cache.acquire(100)
cache.step({slot: 100})
k, v = cache.layer(0)
k[slot.index, :100] = 1.0
"""


def run(body: str, start: str = START + BACKED) -> str:
    """Run a script and return what it printed; it must exit cleanly."""
    script = start + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_context_that_was_reset_is_a_typed_error():
    pytest.importorskip("cuda.bindings.driver")
    said = run(
        """
        from cuda.bindings import driver
        assert driver.cuDevicePrimaryCtxReset(0)[0] == 0
        try:
            cache.step({slot: 8000})
        except DriverError as error:
            print(error.status, error)
        cache.close()
        import os
        os._exit(0)  # torch does not survive a reset
        """
    )
    assert said.startswith("CUDA_ERROR_CONTEXT_IS_DESTROYED")
    assert "make a new one" in said


def test_a_sticky_kernel_fault_is_a_typed_error_with_its_remedy():
    said = run(
        """
        try:
            torch.zeros(4, device="cuda")[torch.tensor([100], device="cuda")]
            torch.cuda.synchronize()
        except Exception:
            pass
        try:
            cache.step({slot: 8000})
        except DriverError as error:
            print(error.status, error)
        import os
        os._exit(0)
        """
    )
    assert said.startswith("CUDA_ERROR_ASSERT")
    assert "restart the process" in said


def test_a_forked_child_cannot_use_the_cache_nor_open_one():
    said = run(
        """
        import os, sys
        child = os.fork()
        if child == 0:
            for act in (lambda: cache.step({slot: 200}), open_cache):
                try:
                    act()
                except (ForkError, DriverUnavailable) as error:
                    print(type(error).__name__, error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        assert k[slot.index, :100].eq(1.0).all()
        cache.close()
        """
    )
    assert "ForkError" in said
    assert "DriverUnavailable" in said
    assert "spawn" in said


@pytest.mark.parametrize(
    "ending",
    [
        "cache.close()",
        "del k, v; cache.close()",
        "cache.close(); del k, v, cache",
        "",
        "del cache",
        "import atexit; atexit.register(cache.close)",
        "torch.cuda.synchronize(); del torch; cache.close()",
    ],
)
def test_the_process_exits_cleanly_in_any_order(ending):
    run(f"import warnings; warnings.simplefilter('ignore')\n{ending}\nprint('done')")


@pytest.mark.parametrize("first", ["torch", "pyvattn"])
def test_it_does_not_matter_who_starts_cuda(first):
    touch = "torch.zeros(1, device='cuda')\n"
    body = "with open_cache() as cache:\n    cache.step({cache.acquire(10): 10})\n"
    run((touch + body if first == "torch" else body + touch) + "print('done')", start=START)


@pytest.mark.alone
def test_memory_of_a_killed_process_is_back():
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    script = START + BACKED + "cache.step({slot: 8000}); import os; os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert before - torch.cuda.mem_get_info()[0] < 64 << 20
