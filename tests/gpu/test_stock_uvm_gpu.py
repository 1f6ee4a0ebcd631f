# SPDX-License-Identifier: Apache-2.0
"""`stock-uvm` and `patched` on a GPU: CUDA sees the memory, and nothing outlives its owner."""

# ruff: noqa: E402
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path[:0] = [str(Path(__file__).parents[1] / "drivers"), str(Path(__file__).parent)]

import conformance
from nvidia_drivers import free_memory, open_cache, require, run, script
from test_cumem_driver import DeviceSpace

from pyvattn import _native

MIB = 1 << 20
DRIVERS = ["stock-uvm", "patched"]

# Small caches on small pages: what a plan says of their speed does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore::pyvattn.PlanWarning")


@pytest.fixture(params=DRIVERS)
def driver(request):
    require(request.param)
    return request.param


class OnDevice(conformance.DriverConformance):
    """The suite that every driver passes, with memory that the CPU cannot touch."""

    @pytest.fixture(autouse=True)
    def _available(self):
        require(self.name)

    @pytest.fixture
    def space(self, driver, page):
        space = DeviceSpace(driver, page)
        yield space
        space.give_back()

    def test_the_driver_itself_rolls_a_bad_batch_back(self, page, monkeypatch):
        monkeypatch.setattr(conformance, "Space", DeviceSpace)
        super().test_the_driver_itself_rolls_a_bad_batch_back(page)

    @pytest.fixture(params=["smallest", "largest"])
    def page(self, request):
        require(self.name)
        sizes = _native.driver_capabilities(self.name).page_sizes
        return sizes[0] if request.param == "smallest" else sizes[-1]


class TestStockUvm(OnDevice):
    name = "stock-uvm"


class TestPatched(OnDevice):
    name = "patched"


# --- CUDA sees the memory ---


@pytest.mark.parametrize("page_size", ["64K", "128K", "256K", "512K", "1M", "2M"])
def test_torch_reads_and_writes_tokens(driver, page_size):
    with open_cache(driver, page_size) as cache:
        slot = cache.acquire(3000)
        cache.step({slot: 3000})
        k, v = cache.layer(1)
        assert not k[slot.index, :3000].any(), "fresh memory is not zero"
        k[slot.index, :3000].fill_(1.0)
        tokens = torch.randn(3000, 8, 128, dtype=torch.bfloat16)
        v[slot.index, :3000].copy_(tokens)
        assert k[slot.index, :3000].eq(1.0).all()
        assert torch.equal(v[slot.index, :3000].cpu(), tokens)
        assert torch.equal(
            v[slot.index, 100:200:7].to("cpu", torch.float32), tokens[100:200:7].float()
        )
        pinned = torch.empty(3000, 8, 128, dtype=torch.bfloat16, pin_memory=True)
        pinned.copy_(v[slot.index, :3000], non_blocking=True)
        torch.cuda.synchronize()
        assert torch.equal(pinned, tokens)


def test_what_is_not_mapped_reads_as_zeros_by_copies_and_kernels(driver):
    with open_cache(driver) as cache:
        slot = cache.acquire(100)
        cache.step({slot: 100})
        k, _ = cache.layer(0)
        k[slot.index, :100].fill_(3.0)
        assert not k[slot.index, 5000:].cpu().any()
        assert not k[slot.index, 5000:].float().sum().item()
        other = (slot.index + 1) % 4
        assert not k[other].float().sum().item()


def test_a_released_slots_tokens_are_never_seen_again(driver):
    with open_cache(driver) as cache:
        slot = cache.acquire(8000)
        cache.step({slot: 8000})
        for tensor in cache.layer(0):
            tensor[slot.index, :8000].fill_(float("nan"))
        cache.release(slot)
        slot = cache.acquire(8000)
        cache.step({slot: 8000})
        for tensor in cache.layer(0):
            assert not tensor[slot.index, :8000].isnan().any()


def test_a_cuda_graph_replays_over_memory_that_was_mapped_later(driver):
    with open_cache(driver) as cache:
        slot = cache.acquire(64)
        cache.step({slot: 64})
        k, v = cache.layer(0)
        row, source = k[slot.index, :8000], v[slot.index, :8000]
        stream = torch.cuda.Stream()
        cache.step({slot: 8000})
        with torch.cuda.stream(stream):
            row.add_(source)
        stream.synchronize()
        row.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            row.add_(source)
        source.fill_(2.0)
        graph.replay()
        graph.replay()
        torch.cuda.synchronize()
        assert row.eq(4.0).all()


@pytest.mark.parametrize("library", ["cupy", "jax"])
def test_other_libraries_take_the_tensors_through_dlpack(driver, library):
    module = pytest.importorskip("cupy" if library == "cupy" else "jax.numpy")
    # JAX leaves another of several GPUs current, and torch exports tensors of the current
    # device only.
    module.zeros(1)
    with torch.cuda.device(0), open_cache(driver) as cache:
        slot = cache.acquire(100)
        cache.step({slot: 100})
        k, _ = cache.layer(0)
        k[slot.index, :100].fill_(2.0)
        part = k[slot.index, :100].to(torch.float32)
        assert float(module.from_dlpack(part).sum()) == part.sum().item()
        if library == "cupy":
            raw = k[slot.index, :100].view(torch.int16)
            assert (module.from_dlpack(raw) == raw.cpu().numpy()[0, 0, 0]).all()


def test_kernels_run_on_while_pages_are_mapped(driver):
    with open_cache(driver) as cache:
        slot, other = cache.acquire(4000), cache.acquire(10)
        cache.step({slot: 4000, other: 10})
        k, _ = cache.layer(0)
        k[slot.index, :4000].fill_(1.0)
        sums = []
        for length in range(100, 8000, 100):
            sums.append(k[slot.index, :4000].float().sum())
            cache.step({slot: 4000, other: length})
        torch.cuda.synchronize()
        assert {value.item() for value in sums} == {4000.0 * 8 * 128}


# --- memory and its owners ---


@pytest.mark.alone
def test_memory_is_taken_by_steps_and_goes_back(driver):
    torch.zeros(1, device="cuda")
    before = torch.cuda.mem_get_info()[0]
    with open_cache(driver) as cache:
        slots = [cache.acquire(8000) for _ in range(4)]
        cache.step(dict.fromkeys(slots, 8000))
        assert before - torch.cuda.mem_get_info()[0] >= cache.stats().bytes_mapped
    del cache, slots
    torch.cuda.synchronize()
    assert before - torch.cuda.mem_get_info()[0] < 256 * MIB


def test_two_caches_in_one_process_are_apart(driver):
    with open_cache(driver) as first, open_cache(driver) as second:
        rows = []
        for value, cache in ((1.0, first), (2.0, second)):
            slot = cache.admit(1000)
            row = cache.layer(0)[0][slot.index, :1000]
            row.fill_(value)
            rows.append((row, value, cache, slot))
        for row, value, cache, slot in rows:
            assert row.eq(value).all()
            cache.release(slot)


def test_two_processes_on_one_gpu_are_apart(driver):
    body = """
    import sys
    cache = open_cache()
    slot = cache.acquire(8000)
    cache.step({slot: 8000})
    k, _ = cache.layer(0)
    mark = float(sys.argv[1])
    for _ in range(200):
        k[slot.index, :8000].fill_(mark)
        assert k[slot.index, :8000].eq(mark).all()
        cache.release(slot)
        slot = cache.acquire(8000)
        cache.step({slot: 8000})
        assert not k[slot.index, :8000].any()
    cache.close()
    """
    command = [sys.executable, "-c", script(driver, body)]
    both = [subprocess.Popen([*command, mark]) for mark in ("1", "2")]
    assert [process.wait() for process in both] == [0, 0]


@pytest.mark.alone
def test_memory_of_a_process_killed_among_its_maps_is_back(driver):
    body = """
    cache = open_cache()
    while True:
        slots = [cache.acquire(8000) for _ in range(4)]
        for length in range(32, 8001, 32):
            cache.step(dict.fromkeys(slots, length))
            print(cache.stats().map_calls, flush=True)
        for slot in slots:
            cache.release(slot)
        cache.resize("16MiB"); cache.resize("1GiB")
    """
    before = free_memory()
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", script(driver, body)], stdout=subprocess.PIPE, text=True
        ) as process:
            for calls in process.stdout:
                if int(calls) >= 5_000:  # of ten thousand and more
                    break
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert before - free_memory() < 64 * MIB


# --- the process's life ---


def test_every_visible_gpu_can_be_used(driver):
    for ordinal in range(torch.cuda.device_count()):
        space = DeviceSpace(_native.make_driver(driver, 64 << 10, ordinal), 64 << 10)
        space.map(0, 0)
        space.write(0, b"tokens")
        assert space.read(0).startswith(b"tokens")
        space.give_back()


@pytest.mark.parametrize("first", ["torch", "pyvattn"])
def test_it_does_not_matter_who_starts_cuda(driver, first):
    touch = "torch.zeros(1, device='cuda')\n"
    use = "with open_cache() as cache:\n    cache.step({cache.acquire(10): 10})\n"
    run(driver, touch + use if first == "torch" else use + touch)


@pytest.mark.parametrize(
    "ending",
    ["cache.close()", "del k, v; cache.close()", "", "del cache", "os.fork() or os._exit(0)"],
)
def test_the_process_exits_cleanly_in_any_order(driver, ending):
    body = """
    import os, warnings; warnings.simplefilter('ignore')
    cache = open_cache()
    slot = cache.acquire(100); cache.step({slot: 100}); k, v = cache.layer(0)
    """
    run(driver, body + f"\n    {ending}\n")


def test_a_forked_child_leaves_its_parents_memory_alone(driver):
    said = run(
        driver,
        """
        import os
        cache = open_cache()
        slot = cache.acquire(100); cache.step({slot: 100}); k, v = cache.layer(0)
        k[slot.index, :100] = 1.0
        torch.cuda.synchronize()
        child = os.fork()
        if child == 0:
            try:
                cache.step({slot: 200})
            except ForkError as error:
                print(error, flush=True)
            del cache
            os._exit(0)
        os.waitpid(child, 0)
        cache.step({slot: 5000})
        assert k[slot.index, :100].eq(1.0).all()
        cache.close()
        """,
    )
    assert "spawn" in said


def test_a_context_that_was_reset_is_a_typed_error(driver):
    pytest.importorskip("cuda.bindings.driver")
    said = run(
        driver,
        """
        from cuda.bindings import driver as cuda
        cache = open_cache()
        slot = cache.acquire(100); cache.step({slot: 100})
        assert cuda.cuDevicePrimaryCtxReset(0)[0] == 0
        try:
            cache.step({slot: 8000})
        except DriverError as error:
            print(error.status)
        cache.close()
        import os; os._exit(0)  # torch does not survive a reset
        """,
    )
    assert said.startswith("CUDA_ERROR_CONTEXT_IS_DESTROYED")


@pytest.mark.alone
def test_the_kernel_log_stays_silent(driver):
    """Where it can be read: our calls leave no line of NVIDIA's modules behind."""
    if os.geteuid() != 0 or subprocess.run(["dmesg"], capture_output=True).returncode != 0:
        pytest.skip("the kernel log cannot be read here")

    def lines():
        text = subprocess.run(["dmesg"], capture_output=True, text=True).stdout
        return sum("NVRM" in line or "nvidia-uvm" in line for line in text.splitlines())

    before = lines()
    run(driver, "with open_cache() as cache:\n    cache.step({cache.acquire(8000): 8000})\n")
    assert lines() == before
