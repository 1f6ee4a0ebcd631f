# SPDX-License-Identifier: Apache-2.0
"""The `cumem` driver on the emulated libcuda: CUDA's rules, failures and ordering."""

from __future__ import annotations

import os

import mapped_space
import pytest

from pyvattn import _native
from pyvattn._native import emulated_cuda as gpu
from pyvattn.errors import ConfigError, DriverError

PAGE = 2 << 20
PAGES = 8
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
LAUNCH_FAILED = 719


@pytest.fixture(autouse=True)
def _fresh_gpu():
    """Start from an empty device; nothing may be left, nothing undefined done."""
    gpu.reset()
    yield
    assert gpu.violations() == []
    held = gpu.holdings()
    assert (held.reservations, held.allocations, held.mappings) == (0, 0, 0)
    assert (held.streams, held.events, held.contexts) == (0, 0, 0)


class Space(mapped_space.Space):
    """Eight pages of addresses on a driver of its own, and a slab for each."""

    def __init__(self, device: int = 0, peer_access: bool = False):
        driver = _native.make_driver("cumem-emulated", PAGE, device, peer_access)
        super().__init__(driver, PAGE, PAGES, slabs=PAGES)
        self.device = device

    def entries(self, *pages: int) -> list[_native.MapEntry]:
        return [self.entry(page) for page in pages]

    def read(self, place: int, size: int = PAGE) -> bytes:
        return super().read(place, size)

    def fill(self, page: int, byte: int) -> None:
        self.write(page, bytes([byte]) * PAGE)

    def close(self, *mapped: int) -> None:
        self.driver.unmap(self.entries(*mapped))
        self.give_back()


class Calls:
    """Counts calls of the library from its construction on."""

    def __init__(self, *functions: str):
        self.before = {function: gpu.calls(function) for function in functions}

    def made(self) -> dict[str, int]:
        return {function: gpu.calls(function) - n for function, n in self.before.items()}


def advance() -> None:
    """Let every stream run as far as it can."""
    _native.stream_fence("cumem-emulated", 0, gpu.make_stream(0)).wait()


def test_a_run_of_pages_takes_one_set_access_and_one_unmap():
    space = Space()
    calls = Calls("cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemCreate")
    space.driver.map(space.entries(0, 1, 2, 3, 6))
    space.driver.unmap(space.entries(0, 1, 2, 3, 6))
    assert calls.made() == {"cuMemMap": 5, "cuMemSetAccess": 2, "cuMemUnmap": 2, "cuMemCreate": 0}
    space.close()


def test_a_run_ends_where_its_reservation_does():
    first = Space()
    driver, base = first.driver, first.driver.reserve(PAGES * PAGE, PAGE)
    assert base == first.base + PAGES * PAGE, "the emulator puts reservations side by side"
    slab = driver.allocate_slab(PAGE)
    beyond = _native.MapEntry(base, PAGE, slab, 0)
    batch = [*first.entries(PAGES - 2, PAGES - 1), beyond]
    driver.map(batch)
    driver.zero([(first.address(PAGES - 1), 2 * PAGE)])
    assert first.read(PAGES) == bytes(PAGE)
    gpu.fail("cuMemUnmap", 2, INVALID_VALUE)
    with pytest.raises(DriverError):
        driver.unmap(batch)
    assert gpu.holdings().mappings == 3
    driver.unmap(batch)
    driver.free_slab(slab)
    driver.release_reservation(base)
    del driver
    first.close()


def test_fresh_pages_are_zeroed_once_and_recycled_ones_keep_their_bytes():
    space = Space()
    space.driver.map(space.entries(0, 1))
    assert space.read(0) == space.read(1) == bytes(PAGE)
    space.fill(0, 7)
    space.driver.unmap(space.entries(0))
    calls = Calls("cuMemsetD8Async")
    space.driver.map(space.entries(0))
    assert calls.made() == {"cuMemsetD8Async": 0}
    assert space.read(0) == b"\7" * PAGE
    space.close(0, 1)


def test_memory_of_the_device_is_not_zero_by_itself():
    """Or else the test above would prove nothing."""
    space = Space()
    gpu.fail("cuMemsetD8Async", 1, 0)  # claims success and does nothing
    space.driver.map(space.entries(0))
    assert space.read(0) == b"\xff" * PAGE
    space.close(0)


# --- failures ---


@pytest.mark.parametrize("function", ["cuMemMap", "cuMemSetAccess", "cuMemsetD8Async"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_map_that_fails_in_the_middle_leaves_nothing(function, nth):
    space = Space()
    gpu.fail(function, nth, LAUNCH_FAILED)
    with pytest.raises(DriverError) as caught:
        space.driver.map(space.entries(0, 1, 4, 5))
    assert caught.value.status == "CUDA_ERROR_LAUNCH_FAILED"
    assert function in caught.value.operation
    assert caught.value.address in [space.address(p) for p in (0, 1, 4, 5)]
    assert gpu.holdings().mappings == 0
    advance()  # what is still running would now write to nowhere
    space.driver.map(space.entries(0, 1, 4, 5))
    assert space.read(0) == space.read(5) == bytes(PAGE)
    space.close(0, 1, 4, 5)


def test_an_unmap_that_fails_in_the_middle_is_undone():
    space = Space()
    space.driver.map(space.entries(0, 1, 4, 5))
    space.fill(0, 7)
    gpu.fail("cuMemUnmap", 2, INVALID_VALUE)
    with pytest.raises(DriverError, match="CUDA_ERROR_INVALID_VALUE"):
        space.driver.unmap(space.entries(0, 1, 4, 5))
    assert gpu.holdings().mappings == 4
    assert space.read(0) == b"\7" * PAGE
    space.close(0, 1, 4, 5)


@pytest.mark.parametrize(
    ("function", "act"),
    [
        ("cuMemAddressReserve", lambda s: s.driver.reserve(PAGE, PAGE)),
        ("cuMemCreate", lambda s: s.driver.allocate_slab(PAGE)),
        ("cuMemRelease", lambda s: s.driver.free_slab(s.slabs[0])),
        ("cuMemAddressFree", lambda s: s.driver.release_reservation(s.base)),
        ("cuEventCreate", lambda s: s.driver.zero([(s.address(7), PAGE)])),
        ("cuEventSynchronize", lambda s: s.driver.zero([(s.address(7), PAGE)])),
    ],
)
def test_every_failure_has_cudas_name_and_changes_nothing(function, act):
    space = Space()
    space.driver.map(space.entries(7))
    before = gpu.holdings()
    gpu.fail(function, 1, LAUNCH_FAILED)
    with pytest.raises(DriverError) as caught:
        act(space)
    assert caught.value.status == "CUDA_ERROR_LAUNCH_FAILED"
    assert function in caught.value.operation
    after = gpu.holdings()
    assert (after.reservations, after.allocations) == (before.reservations, before.allocations)
    assert (after.mappings, after.events) == (before.mappings, before.events)
    space.close(7)


@pytest.mark.parametrize(
    ("failing", "nth"),
    [
        ("cuDevicePrimaryCtxRetain", 1),
        ("cuCtxGetId", 1),
        ("cuStreamCreate", 1),
        ("cuStreamCreate", 2),
    ],
)
def test_a_driver_that_cannot_be_opened_holds_nothing(failing, nth):
    gpu.fail(failing, nth, LAUNCH_FAILED)
    with pytest.raises(DriverError, match="CUDA_ERROR_LAUNCH_FAILED"):
        _native.make_driver("cumem-emulated", PAGE)


def test_out_of_device_memory_says_what_is_free_and_passes():
    space = Space()
    gpu.occupy(0, (4 << 30) - (PAGES + 1) * PAGE)
    extra = space.driver.allocate_slab(PAGE)
    with pytest.raises(MemoryError, match="0 of the device's 4294967296 bytes are free"):
        space.driver.allocate_slab(PAGE)
    gpu.occupy(0, 0)
    space.slabs.append(space.driver.allocate_slab(PAGE))
    space.driver.free_slab(extra)
    space.close()


def test_a_failed_roll_back_stops_the_driver_but_everything_can_be_given_back():
    space = Space()
    gpu.fail("cuMemSetAccess", 1, OUT_OF_MEMORY)
    gpu.fail("cuMemUnmap", 1, INVALID_VALUE)
    with pytest.raises(MemoryError):
        space.driver.map(space.entries(0, 1))
    with pytest.raises(DriverError, match="could not be undone"):
        space.driver.map(space.entries(2))
    space.close(0, 1)


def test_a_driver_that_is_dropped_gives_everything_back():
    space = Space()
    space.driver.map(space.entries(0, 1, 5))
    del space


def test_a_sticky_kernel_fault_is_named_with_its_remedy():
    space = Space()
    stream = gpu.make_stream(0)
    gpu.release_kernel(gpu.launch_kernel(0, stream, space.address(3), 1))
    fence = _native.stream_fence("cumem-emulated", 0, stream)
    with pytest.raises(DriverError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*restart the process"):
        fence.wait()
    with pytest.raises(DriverError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        space.driver.map(space.entries(0))
    del fence, space
    gpu.reset()  # as the end of the process does


# --- ordering ---


def test_recycled_pages_are_zeroed_after_the_callers_kernel():
    space = Space()
    space.driver.map(space.entries(0, 1))
    space.fill(0, 7)
    stream = gpu.make_stream(0)
    kernel = gpu.launch_kernel(0, stream, space.address(0), PAGE)
    after = _native.stream_fence("cumem-emulated", 0, stream)
    done = space.driver.zero_after([(space.address(0), PAGE)], after)
    assert not done.passed()
    assert space.read(0) == b"\7" * PAGE
    gpu.release_kernel(kernel)
    done.wait()
    assert done.passed()
    assert space.read(0) == bytes(PAGE)
    del after, done
    space.close(0, 1)


def test_fresh_pages_do_not_wait_for_the_zeroing_of_recycled_ones():
    space = Space()
    space.driver.map(space.entries(0))
    stream = gpu.make_stream(0)
    kernel = gpu.launch_kernel(0, stream, space.address(0), PAGE)
    after = _native.stream_fence("cumem-emulated", 0, stream)
    done = space.driver.zero_after([(space.address(0), PAGE)], after)
    space.driver.map(space.entries(1))
    assert space.read(1) == bytes(PAGE)
    assert not done.passed()
    gpu.release_kernel(kernel)
    done.wait()
    del after, done
    space.close(0, 1)


def test_a_fence_outlives_the_event_it_was_made_from():
    stream, event = gpu.make_stream(0), gpu.make_event(0)
    space = Space()
    kernel = gpu.launch_kernel(0, stream)
    gpu.record_event(0, event, stream)
    fence = _native.event_fence("cumem-emulated", 0, event)
    gpu.destroy_event(event)
    assert not fence.passed()
    gpu.release_kernel(kernel)
    fence.wait()
    assert fence.passed()
    del fence
    space.close()


def test_a_fence_takes_only_work_submitted_before_it():
    space = Space()
    stream = gpu.make_stream(0)
    fence = _native.stream_fence("cumem-emulated", 0, stream)
    kernel = gpu.launch_kernel(0, stream)
    assert fence.passed()
    gpu.release_kernel(kernel)
    del fence
    space.close()


def test_drivers_without_streams_refuse_fences():
    assert not _native.has_streams("host")
    with pytest.raises(ConfigError, match="no CUDA streams"):
        _native.stream_fence("host", 0, 0)


def test_mapping_works_while_another_thread_captures_a_cuda_graph():
    space = Space()
    gpu.set_capturing(True)
    space.driver.map(space.entries(0))
    space.driver.zero([(space.address(0), PAGE)])
    space.driver.unmap(space.entries(0))
    gpu.set_capturing(False)
    assert gpu.capture_mode() == 0, "the thread's own captures would go unchecked"
    space.close()


# --- devices, contexts, processes ---


def test_two_devices_do_not_share_memory():
    first, second = Space(0), Space(1)
    gpu.occupy(0, 4 << 30)
    with pytest.raises(MemoryError):
        first.driver.allocate_slab(PAGE)
    second.driver.free_slab(second.driver.allocate_slab(PAGE))
    first.driver.map(first.entries(0))
    second.driver.map(second.entries(0))
    first.fill(0, 1)
    assert second.read(0) == bytes(PAGE)
    first.close(0)
    second.close(0)


# --- several devices ---


def run_kernel(device: int, space: Space, page: int) -> None:
    """Let a kernel of the device read a page; then any call says whether it could."""
    kernel = gpu.launch_kernel(device, 0, space.address(page), PAGE)
    gpu.release_kernel(kernel)
    advance()


@pytest.mark.parametrize("owner", [0, 1])
def test_kernels_of_both_devices_reach_what_either_has_mapped(owner):
    space = Space(owner, peer_access=True)
    assert space.driver.capabilities.peers == [1 - owner]
    calls = Calls("cuMemSetAccess")
    space.driver.map(space.entries(0, 1, 2))
    assert calls.made() == {"cuMemSetAccess": 1}, "one call is for all devices"
    for page in (0, 2):
        run_kernel(owner, space, page)
        run_kernel(1 - owner, space, page)
    space.close(0, 1, 2)


def test_a_page_whose_unmap_was_undone_is_the_peers_again():
    space = Space(peer_access=True)
    space.driver.map(space.entries(0, 3))
    gpu.fail("cuMemUnmap", 2, INVALID_VALUE)
    with pytest.raises(DriverError):
        space.driver.unmap(space.entries(0, 3))
    run_kernel(1, space, 0)
    space.close(0, 3)


def test_access_that_no_peer_can_have_is_refused():
    gpu.connect(False)
    with pytest.raises(ConfigError, match="peer_access=True: no other device can reach"):
        _native.make_driver("cumem-emulated", PAGE, 0, True)


def test_peers_get_no_access_that_was_not_asked_for():
    space = Space()
    assert _native.driver_capabilities("cumem-emulated", 0).peers == [1]
    assert space.driver.capabilities.peers == []
    space.driver.map(space.entries(0))
    run_kernel(0, space, 0)
    with pytest.raises(DriverError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        run_kernel(1, space, 0)
    gpu.reset()  # a fault is for good


@pytest.mark.parametrize("device", [-1, 2])
def test_an_ordinal_that_does_not_exist_is_named(device):
    with pytest.raises(ConfigError, match=f"no device cuda:{device}: CUDA sees 2"):
        _native.driver_capabilities("cumem-emulated", device)


def test_asking_what_a_device_offers_makes_no_context():
    offered = _native.driver_capabilities("cumem-emulated", 0)
    assert offered.page_sizes == [PAGE]
    assert offered.call_per_page
    assert not offered.zero_backed
    assert gpu.calls("cuDevicePrimaryCtxRetain") == 0


@pytest.mark.parametrize("used_again", [False, True])
def test_a_context_that_was_reset_is_reported_and_can_be_cleaned_up(used_again):
    space = Space()
    space.driver.map(space.entries(0, 1))
    stream = gpu.make_stream(0)
    fence = _native.stream_fence("cumem-emulated", 0, stream)
    gpu.reset_context(0)
    if used_again:  # by torch, say: the same context is active, but not the one we knew
        other = _native.make_driver("cumem-emulated", PAGE)
    for act in (
        lambda: space.driver.map(space.entries(2)),
        lambda: space.driver.allocate_slab(PAGE),
        lambda: space.driver.zero([(space.address(0), PAGE)]),
    ):
        with pytest.raises(DriverError, match=r"CUDA_ERROR_CONTEXT_IS_DESTROYED.*make a new one"):
            act()
    assert fence.passed()
    fence.wait()
    space.close(0, 1)
    del fence
    if used_again:
        del other


def test_a_forked_child_is_refused_and_leaves_the_parent_alone():
    space = Space()
    space.driver.map(space.entries(0))
    space.fill(0, 7)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            space.driver.allocate_slab(PAGE)
            os.write(writer, b"no error")
        except DriverError as error:
            os.write(writer, str(error).encode())
        finally:
            del space
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    message = os.read(reader, 4096).decode()
    os.close(reader)
    assert "CUDA_ERROR_NOT_INITIALIZED" in message
    assert "spawn" in message
    assert space.read(0) == b"\7" * PAGE
    space.close(0)
