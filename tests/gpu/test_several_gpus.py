# SPDX-License-Identifier: Apache-2.0
"""Several GPUs in one process: caches on each, and copies from one straight into another.

A copy onto memory without access ends the process, so each case has one of its own.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "attention")]

import attention_cases
from nvidia_drivers import SPEC, require

from pyvattn import _native
from pyvattn.attention import attend, kernel_infos

KERNELS = [info.name for info in kernel_infos() if info.unavailable is None] or ["none"]
DRIVERS = ["cumem", "stock-uvm", "patched"]

# Random tokens on one GPU, copied into a cache on the other, as a whole and scattered.
COPY = """
import sys, warnings
import torch
from pyvattn import CacheSpec, KVCache, errors
warnings.simplefilter("ignore", errors.PlanWarning)
driver, layout, source, target = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = dict(driver=driver, layout=layout, memory="1GiB", peer_access={peer_access})
def open_cache(device):
    spec = CacheSpec(**{spec!r}, max_slots=2, max_tokens=4096)
    return KVCache(spec, device=f"cuda:{{device}}", **options)
with open_cache(source) as first, open_cache(target) as second:
    assert (first.device, second.device) == (f"cuda:{{source}}", f"cuda:{{target}}")
    assert (first.device in second.peers) == options["peer_access"]
    for cache in (first, second):
        slots = [cache.acquire(3000), cache.acquire(3000)]
        cache.step(dict.fromkeys(slots, 3000))
    for layer in range(2):
        for mine, theirs in zip(first.layer(layer), second.layer(layer)):
            tokens = torch.randn(2, 3000, *mine.shape[2:]).to(mine.dtype)
            mine[:, :3000].copy_(tokens)
{copy}
            assert torch.equal(theirs[:, :3000].cpu(), tokens)
            assert torch.equal(mine[:, :3000].cpu(), tokens)
    torch.cuda.synchronize(source)
    torch.cuda.synchronize(target)
print("copied")
"""
STRAIGHT = """
            theirs[0, :3000].copy_(mine[0, :3000])
            theirs[1, 0:3000:2].copy_(mine[1, 0:3000:2])
            theirs[1, 1:3000:2].copy_(mine[1, 1:3000:2].clone())
"""
STAGED = """
            theirs[:, :3000].copy_(mine[:, :3000].to(theirs.device))
"""


def require_two(driver: str) -> None:
    require(driver)
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")


def run(program: str, *arguments: object) -> str:
    """Run a program of its own and return what it printed; it must exit cleanly."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)])
def test_tokens_go_straight_from_one_gpus_cache_into_the_others(driver, layout, source, target):
    require_two(driver)
    if source not in _native.driver_capabilities(driver, target).peers:
        pytest.skip(f"cuda:{source} cannot reach {driver}'s memory on cuda:{target}")
    program = COPY.format(spec=SPEC, copy=STRAIGHT, peer_access=True)
    assert "copied" in run(program, driver, layout, source, target)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)])
def test_tokens_go_by_way_of_torchs_memory_without_access(driver, layout, source, target):
    require_two(driver)
    program = COPY.format(spec=SPEC, copy=STAGED, peer_access=False)
    assert "copied" in run(program, driver, layout, source, target)


# Longer than what goes at a time, and not a multiple of it.
RESTORE = """
import sys, warnings
import torch
from pyvattn import CacheSpec, KVCache, errors
warnings.simplefilter("ignore", errors.PlanWarning)
driver, layout, peer_access = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
def open_cache(device):
    spec = CacheSpec(2, 8, 128, "bfloat16", max_slots=2, max_tokens=80000)
    options = dict(driver=driver, layout=layout, memory="4GiB", peer_access=peer_access)
    return KVCache(spec, device=f"cuda:{device}", **options)
with open_cache(0) as first, open_cache(1) as second:
    slot = first.admit(71003)
    wanted = []
    for layer in range(2):
        for tensor in first.layer(layer):
            wanted.append(torch.randn(71003, 8, 128).to(tensor.dtype))
            tensor[slot.index, :71003].copy_(wanted[-1])
    for _ in range(3):  # to pages that are mapped piece by piece, then to those that are there
        there = second.restore(first.dense_views(slot))
        found = [
            tensor[there.index, :71003].cpu()
            for layer in range(2)
            for tensor in second.layer(layer)
        ]
        assert all(map(torch.equal, found, wanted))
        for layer in range(2):
            for tensor in second.layer(layer):
                tensor[there.index, :71003].zero_()
        second.release(there)
print("copied")
"""


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("peer_access", [False, True])
def test_a_slot_is_restored_from_one_gpus_cache_in_the_others(driver, layout, peer_access):
    require_two(driver)
    if peer_access and 0 not in _native.driver_capabilities(driver, 1).peers:
        pytest.skip(f"cuda:0 cannot reach {driver}'s memory on cuda:1")
    assert "copied" in run(RESTORE, driver, layout, peer_access)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_run_on_the_caches_gpu_while_another_is_current(kernel):
    require_two("cumem")
    case = attention_cases.open_case(
        "layer", 2, 8, 128, dtype="bfloat16", device="cuda:1", driver="cumem", max_tokens=1024
    )
    with torch.cuda.device(0), case.cache:
        case.fill(4, 300)
        q = case.queries(5)
        out = attend(q, case.cache, case.layer, case.slots, case.lengths, kernel=kernel)
        assert out.device == torch.device("cuda:1")
        torch.testing.assert_close(out.double(), case.expected(q), atol=2e-2, rtol=2e-2)


def test_every_pair_of_gpus_that_torch_copies_between_can_have_access():
    """torch copies straight between these, and asks no owner of memory."""
    require_two("cumem")
    count = torch.cuda.device_count()
    for device in range(count):
        others = [each for each in range(count) if each != device]
        reachable = [o for o in others if torch.cuda.can_device_access_peer(o, device)]
        assert _native.driver_capabilities("cumem", device).peers == reachable


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_cache_makes_no_context_on_the_gpus_beside_it(driver):
    """A context takes hundreds of MiB: access for a peer must not make one there."""
    require_two(driver)
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no nvidia-smi here")
    listed = ["nvidia-smi", "--query-compute-apps=pid,gpu_uuid", "--format=csv,noheader"]
    access = bool(_native.driver_capabilities(driver, 0).peers)
    program = f"""
import os, subprocess, sys
import torch
from pyvattn import CacheSpec, KVCache
spec = CacheSpec(**{SPEC!r}, max_slots=2, max_tokens=4096)
options = dict(driver={driver!r}, layout="layer", memory="1GiB", peer_access={access})
with KVCache(spec, device="cuda:0", **options) as cache:
    cache.step({{cache.acquire(3000): 3000}})
    cache.layer(0)[0][0, :3000].fill_(1.0)
    torch.cuda.synchronize()
    lines = subprocess.run({listed!r}, capture_output=True, text=True).stdout.splitlines()
print(*(line.split(", ")[1] for line in lines if line.split(", ")[0] == str(os.getpid())))
"""
    found = run(program).split()
    if not found:
        pytest.skip(f"nvidia-smi does not list this process ({os.uname().release})")
    assert len(found) == 1
