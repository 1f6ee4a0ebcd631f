# SPDX-License-Identifier: Apache-2.0
"""Replays against figures worked out by hand, and the real allocator against its promises."""

from array import array
from itertools import pairwise

import pytest

from pyvattn import CacheSpec, ConfigError, OutOfMemory
from pyvattn.replay import ContiguousAllocator, PagedAllocator, StaticAllocator, replay
from pyvattn.replay.compare import cases, check_fits, run
from pyvattn.replay.result import Recorder
from pyvattn.traces import Request, Trace, synthetic_trace

# 1,024 bytes a token, in layout `layer` over four arenas of 256.
SPEC = CacheSpec(2, 1, 64, "float32", max_slots=4, max_tokens=1024)
K, M = 1 << 10, 1 << 20


def trace(*requests):
    return Trace("test", tuple(Request(*r) for r in requests), synthetic=True, arrivals="given")


def blocks(allocator, rows, lengths):
    allocator.step(array("q", rows), array("q", lengths))
    return allocator.memory()[0]


class TestBaselines:
    def test_paged_allocation_holds_whole_blocks_of_16(self):
        allocator = PagedAllocator(SPEC, 1 * M)
        row = allocator.admit(1)
        assert blocks(allocator, [row], [1]) == 16 * K
        assert blocks(allocator, [row], [16]) == 16 * K
        assert blocks(allocator, [row], [17]) == 32 * K
        allocator.release(row)
        assert allocator.memory() == (0, 0)

    def test_static_allocation_holds_the_longest_request(self):
        allocator = StaticAllocator(SPEC, 2 * M)
        row = allocator.admit(1)
        assert blocks(allocator, [row], [1]) == 1 * M
        assert allocator.can_admit(1)
        blocks(allocator, [allocator.admit(1)], [1])
        assert not allocator.can_admit(1)

    def test_a_step_without_room_changes_nothing(self):
        allocator = PagedAllocator(SPEC, 48 * K)
        a, b = allocator.admit(1), allocator.admit(1)
        before = blocks(allocator, [a, b], [16, 16])
        with pytest.raises(OutOfMemory) as error:
            allocator.step(array("q", [a, b]), array("q", [17, 17]))
        assert error.value.requested == 32 * K
        assert error.value.free == 16 * K
        assert allocator.memory()[0] == before

    def test_a_limit_below_one_block_is_refused(self):
        with pytest.raises(ConfigError, match="static"):
            StaticAllocator(SPEC, 1 * M - 1)


class TestScheduler:
    def test_one_request_by_hand(self):
        result = replay(trace((0.0, 15, 3)), SPEC, PagedAllocator(SPEC, 1 * M), step_seconds=0.5)
        # Lengths 15, 16, 17, 18 in blocks of 16.
        assert (result.requests, result.steps, result.seconds) == (1, 4, 2.0)
        assert result.mean_used == 16.5 * K
        assert result.mean_held == 24 * K
        assert result.peak_held == 32 * K
        assert result.waste_tokens == 7.5
        assert result.mean_wait == 0

    def test_requests_run_together_and_wait_for_their_arrival(self):
        both = trace((0.0, 1, 10), (5.0, 1, 10))
        apart = replay(both, SPEC, PagedAllocator(SPEC, 1 * M), step_seconds=0.1)
        assert (apart.peak_live, apart.steps) == (1, 22)
        together = replay(both, SPEC, PagedAllocator(SPEC, 1 * M), step_seconds=None)
        assert (together.peak_live, together.steps) == (2, 11)

    def test_a_full_cache_makes_requests_wait(self):
        result = replay(
            trace((0.0, 8, 2), (0.0, 8, 2)), SPEC, StaticAllocator(SPEC, 1 * M), step_seconds=1
        )
        assert (result.requests, result.peak_live) == (2, 1)
        # Three steps of the first: 8, 9 and 10 tokens.
        assert result.mean_wait == 1.5

    def test_no_more_requests_are_live_than_there_are_slots(self):
        result = replay(
            trace(*[(0.0, 1, 5)] * 10), SPEC, PagedAllocator(SPEC, 1 * M), step_seconds=1
        )
        assert (result.requests, result.peak_live) == (10, SPEC.max_slots)

    def test_the_youngest_gives_way_and_everybody_ends(self):
        # Room for three blocks; both start with one and would grow to two.
        result = replay(
            trace((0.0, 16, 16), (0.0, 16, 16)), SPEC, PagedAllocator(SPEC, 48 * K), step_seconds=1
        )
        assert (result.requests, result.refused) == (2, 0)
        assert result.preempted == 1
        # Both were admitted at once: what comes after is no waiting for admission.
        assert result.mean_wait == 0

    def test_what_can_never_fit_is_refused_and_counted(self):
        found = trace((0.0, 2000, 1), (0.0, 100, 1), (0.0, 16, 1), (0.0, 1, 100))
        result = replay(found, SPEC, PagedAllocator(SPEC, 48 * K), step_seconds=1)
        # Past max_tokens, a prompt past all memory, and one that outgrows it alone.
        assert (result.requests, result.refused) == (1, 3)

    def test_progress_ends_with_all_requests(self):
        seen = []
        replay(synthetic_trace(250), replace_tokens(SPEC), PagedAllocator(SPEC, 64 * M),
               progress=seen.append)  # fmt: skip
        assert seen == sorted(seen)
        assert seen[-1] == 250
        assert len(seen) > 2

    def test_an_impossible_step_time_is_refused(self):
        with pytest.raises(ConfigError, match="step time"):
            replay(trace((0.0, 1, 1)), SPEC, PagedAllocator(SPEC, 1 * M), step_seconds=0)


class TestContiguous:
    def test_a_request_holds_whole_pages_in_every_arena(self):
        allocator = ContiguousAllocator(SPEC, 4 * M, 64 * K, "layer")
        row = allocator.admit(256)
        # 256 tokens of 256 bytes fill one page of each of four arenas.
        assert blocks(allocator, [row], [256]) == 4 * 64 * K
        assert blocks(allocator, [row], [257]) == 8 * 64 * K
        allocator.close()

    def test_neighbouring_pages_of_a_request_come_in_one_extent(self):
        allocator = ContiguousAllocator(SPEC, 4 * M, 64 * K, "layer")
        assert allocator.mean_extent_bytes() == 0
        row = allocator.admit(768)
        blocks(allocator, [row], [768])
        # Three pages of each of four arenas.
        assert allocator.calls() == (4, 0)
        assert allocator.mean_extent_bytes() == 3 * 64 * K
        blocks(allocator, [row], [769])
        assert allocator.mean_extent_bytes() == (3 + 1) * 64 * K / 2
        allocator.close()

    def test_a_released_slot_keeps_its_pages_but_holds_none(self):
        allocator = ContiguousAllocator(SPEC, 4 * M, 64 * K, "layer")
        row = allocator.admit(256)
        blocks(allocator, [row], [256])
        calls, _ = allocator.calls()
        allocator.release(row)
        held, mapped = allocator.memory()
        assert (held, mapped) == (0, 4 * 64 * K)
        row = allocator.admit(200)
        blocks(allocator, [row], [200])
        assert allocator.calls()[0] == calls
        allocator.close()

    @pytest.mark.parametrize(("layout", "page_size"), [("layer", 64 * K), ("token", 2 * M)])
    def test_equal_traces_give_equal_counts(self, layout, page_size):
        spec = replace_tokens(SPEC)
        requests = synthetic_trace(200, seed=5)
        found = []
        for _ in range(2):
            allocator = ContiguousAllocator(spec, 64 * M, page_size, layout)
            found.append(replay(requests, spec, allocator))
            allocator.close()
        first, second = found
        assert first.requests == 200
        assert first.map_calls > 0
        for name in ("steps", "map_calls", "unmap_calls", "mean_held", "peak_mapped", "preempted"):
            assert getattr(first, name) == getattr(second, name)

    def test_memory_stays_under_the_limit_and_above_what_is_used(self):
        spec = replace_tokens(SPEC)
        allocator = ContiguousAllocator(spec, 32 * M, 64 * K, "token")
        result = replay(synthetic_trace(300, seed=1), spec, allocator, step_seconds=None)
        assert result.peak_mapped <= 32 * M
        for sample in result.samples:
            assert sample.used <= sample.held <= sample.mapped
        allocator.close()


def replace_tokens(spec):
    """Return the spec with room for any synthetic request."""
    return CacheSpec(
        spec.layers, spec.kv_heads, spec.head_dim, spec.dtype, max_slots=16, max_tokens=15000
    )


def test_the_matrix_has_every_layout_and_page_size_and_the_baselines():
    spec = replace_tokens(SPEC)
    found = list(cases(spec, 64 * M, [64 * K, 2 * M], ["layer", "token"]))
    labels = [case.label for case in found]
    assert labels == [
        "layer, 64K", "layer, 2M", "token, 64K", "token, 2M", "static", "paged, 16 tokens",
    ]  # fmt: skip
    requests = synthetic_trace(20)
    assert [run(case, requests, spec, None).label for case in found] == labels


def test_a_limit_below_one_request_is_refused():
    check_fits(SPEC, 1 * M)
    with pytest.raises(ConfigError, match="1024 tokens"):
        check_fits(SPEC, 1 * M - 1)


def test_samples_stay_few_and_evenly_spaced():
    recorder = Recorder(capacity=64)
    for step in range(10000):
        recorder.add(float(step), 1, 2, 3, 4)
    times = [sample.seconds for sample in recorder.samples]
    assert 32 <= len(times) <= 64
    assert len({b - a for a, b in pairwise(times)}) == 1
    assert times[-1] > 9000
    assert (recorder.steps, recorder.used) == (10000, 20000)
