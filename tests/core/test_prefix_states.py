# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike where layers keep states: a hit has the states of where it ends."""

from __future__ import annotations

import random

import pytest
from checked_cache import Later, small_spec
from prefix_server import Random, Server, numbers
from test_groups import grouped_spec

from pyvattn import LengthError, SlotError, StateGroup

pytest.importorskip("torch", reason="states are copied with torch")

STATES = [
    StateGroup([0, 2], {"conv": ((3, 50), "float32"), "ssm": ((10, 100, 77), "float32")}),
    StateGroup([1], {"conv": ((7,), "float32")}),
]
# 64 tokens fill a page of each arena, and the states of a request these.
BLOCK, STATE_PAGES = 64, 10


@pytest.fixture
def serve(open_bench):
    def open_one(**options):
        spec = small_spec(max_slots=options.pop("slots", 8), states=STATES)
        bench = open_bench(spec, shares=True, **{"pages": 512, **options})
        return bench, Server(bench)

    return open_one


def test_a_prompt_is_found_at_its_last_whole_block(serve):
    bench, server = serve()
    prompt = numbers(200)
    slot, hit = server.serve(prompt)
    assert hit == 0
    stats = server.index.stats()
    assert (stats.snapshots, stats.kept_slots) == (1, 1)
    # The blocks are shared, and the states are copied.
    assert bench.check_books().pages_live == 4 * 4 + 2 * STATE_PAGES
    server.say(slot, prompt, 30)
    other, hit = server.serve([*prompt, 5])
    assert hit == 3 * BLOCK
    server.say(other, [*prompt, 5], 3)
    server.check(slot, [*prompt, *[7] * 30])
    assert server.index.stats().hit_tokens == 3 * BLOCK


def test_blocks_without_states_are_no_hit(serve):
    _, server = serve()
    prompt = numbers(300)
    server.serve(prompt)
    # Four blocks are there, and the states of none but the last.
    assert server.hit_of([*prompt[:200], 9]) == 0
    assert server.hit_of([*prompt[:256], 9]) == 256
    assert server.hit_of(prompt[:256]) == 0
    assert server.serve([*prompt[:200], 9])[1] == 0


def test_where_two_prompts_part_the_third_goes_on(serve):
    _, server = serve()
    system = numbers(2 * BLOCK + 10)
    for nth, hit in ((1, 0), (2, 0), (3, 2 * BLOCK), (4, 2 * BLOCK)):
        prompt = [*system, *numbers(100, nth * 1000)]
        slot, found = server.serve(prompt)
        assert found == hit
        server.done(slot, server.say(slot, prompt, 9))


def test_a_prompt_that_was_computed_at_once_has_no_place_to_go_on(serve):
    _, server = serve()
    prompt = numbers(200)
    slot, _ = server.index.admit(prompt)
    server.compute(slot, 0, prompt)
    server.index.publish(slot, prompt)
    assert server.index.stats().snapshots == 0
    assert server.serve([*prompt, 1])[1] == 0


def test_a_chat_goes_on_in_its_own_row_to_the_token(serve):
    bench, server = serve()
    prompt = numbers(100)
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 33)
    server.done(slot, said)
    before = bench.cache.stats().map_calls
    again, hit = server.serve([*said, 1, 2, 3])
    assert (again, hit) == (slot, 133)
    # No page but that of the snapshot's states.
    assert bench.cache.stats().map_calls - before <= STATE_PAGES
    server.done(again, [*said, 1, 2, 3])
    # Other words at the end: the first prompt's end is what is found.
    assert server.serve([*said[:120], 9, 9])[1] == BLOCK


def test_a_row_that_the_device_still_reads_is_copied_from(serve):
    _, server = serve()
    prompt, later = numbers(100), Later()
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 30)
    server.index.publish(slot, said)
    server.index.release(slot, after=later.fence)
    other, hit = server.serve([*said, 1, 2])
    assert hit == 130
    assert other is not slot
    server.check(slot, said)
    later.come()


def test_a_row_whose_states_have_seen_more_is_not_kept(serve):
    _, server = serve()
    prompt = numbers(100)
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 40)
    server.index.publish(slot, said[:-1])
    server.index.release(slot)
    # The end of the prompt, and not the row.
    assert server.index.stats().kept_slots == 1
    assert server.serve([*said, 1])[1] == BLOCK


def test_what_was_forgotten_is_not_found(serve):
    _, server = serve()
    prompt = numbers(200)
    slot, _ = server.serve(prompt)
    server.index.forget(slot)
    assert server.index.stats().kept_slots == 0
    assert server.serve(prompt)[1] == 0


def test_another_salt_finds_nothing(serve):
    _, server = serve()
    prompt = numbers(200)
    slot, _ = server.serve(prompt)
    server.done(slot, server.say(slot, prompt, 10))
    assert server.serve([*prompt, *[7] * 10, 1], "b")[1] == 0
    assert server.serve([*prompt, *[7] * 10, 1], "a")[1] == 210


def test_snapshots_go_before_anything_fails_the_longest_unused_first(serve):
    # Two requests of four blocks, and as much for what is kept.
    bench, server = serve(slots=8, pages=4 * (4 * 4 + STATE_PAGES))
    first, second = numbers(200), numbers(200, 1000)
    for prompt in (first, second):
        slot, _ = server.serve(prompt)
        # Its end is not known to be there.
        bench.cache.step({slot: 201})
        server.index.release(slot)
    assert server.index.stats().kept_slots == 2
    assert server.serve([*first, 1])[1] == 192
    assert server.index.give_up()
    assert server.hit_of([*first, 1]) == 192
    assert server.hit_of([*second, 1]) == 0
    slots = [bench.cache.admit(256) for _ in range(3)]
    assert server.index.stats().kept_slots == 0
    assert server.index.stats().evicted_slots >= 2
    for slot in slots:
        bench.cache.release(slot)
    bench.check_books()


def test_without_room_for_a_snapshot_the_request_goes_on(serve):
    _, server = serve(slots=1)
    prompt = numbers(200)
    slot, _ = server.serve(prompt)
    stats = server.index.stats()
    assert (stats.snapshots, stats.missed_snapshots, stats.kept_slots) == (0, 1, 0)
    server.check(slot, prompt)


def test_where_to_pause_is_asked_of_slots_that_were_admitted(serve):
    bench, server = serve()
    with pytest.raises(SlotError):
        server.index.next_snapshot(bench.cache.admit(5), 0)
    slot, _ = server.index.admit(numbers(200))
    assert server.index.next_snapshot(slot, 0) == 192
    assert server.index.next_snapshot(slot, 192) is None
    with pytest.raises(LengthError, match="tokens=-1"):
        server.index.next_snapshot(slot, -1)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("background", [False, True])
def test_random_requests_read_what_they_would_have_computed(open_bench, seed, background, windows):
    make = grouped_spec if windows else small_spec
    spec = make(max_slots=8, states=STATES)
    bench = open_bench(spec, shares=True, pages=150, background=background)
    server = Server(bench)
    requests = Random(server, random.Random(seed))
    for _ in range(120):
        requests.act()
        requests.check()
        if not background:
            bench.check_books()
    assert requests.hits > 4
    assert server.index.stats().snapshots > 4
    for slot in requests.live:
        server.index.release(slot)
    server.index.close()
    bench.cache.drain()
    assert bench.check_books().pages_live == 0
