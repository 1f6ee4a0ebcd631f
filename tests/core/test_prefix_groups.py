# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike where layers have windows: a hit has the window before it, whole."""

from __future__ import annotations

import random

import pytest
from checked_cache import Later
from prefix_server import Random, Server, numbers
from test_groups import grouped_spec

from pyvattn import OutOfSlots

pytest.importorskip("torch", reason="fork() copies with torch")

# Tokens that fill pages in both groups: 128 of the full layer, twice 64 of the others.
BLOCK = 128


@pytest.fixture
def serve(open_bench):
    def open_one(**options):
        options = {"pages": 512, **options}
        spec = grouped_spec(max_slots=options.pop("slots", 8))
        bench = open_bench(spec, shares=True, **options)
        return bench, Server(bench)

    return open_one


def test_a_block_fills_pages_of_every_group(serve):
    assert serve()[1].index.block_tokens == BLOCK


def test_a_prompt_is_shared_before_its_request_goes_on(serve):
    bench, server = serve()
    prompt = numbers(400)
    server.serve(prompt)
    alone = bench.check_books().pages_live
    # The end of the prompt is kept for later: it shares all it has.
    assert server.index.stats().kept_slots == 1
    _, hit = server.serve([*prompt[:390], 5])
    assert hit == 3 * BLOCK
    # Its tail alone: a page of each arena.
    assert bench.check_books().pages_live == alone + 2 + 4


def test_a_prompt_is_found_at_its_end_after_its_window_has_moved_on(serve):
    _, server = serve()
    prompt = numbers(400)
    slot, _ = server.serve(prompt)
    server.say(slot, prompt, 300)
    assert server.serve([*prompt, 5])[1] == 3 * BLOCK


def test_where_two_prompts_part_the_third_goes_on(serve):
    _, server = serve()
    system = numbers(2 * BLOCK + 10)
    for nth, hit in ((1, 0), (2, 0), (3, 2 * BLOCK), (4, 2 * BLOCK)):
        prompt = [*system, *numbers(300, nth * 1000)]
        slot, found = server.serve(prompt)
        assert found == hit
        server.done(slot, server.say(slot, prompt, 150))


def test_a_kept_window_holds_a_window_alone(serve):
    bench, server = serve()
    prompt = numbers(5 * BLOCK + 1)
    slot, _ = server.serve(prompt)
    server.index.forget(slot)
    server.index.publish(slot, prompt)
    assert server.index.stats().kept_slots == 0
    server.index.release(slot)
    slot, hit = server.serve(prompt + numbers(1))
    assert hit == 5 * BLOCK + 1
    assert bench.check_books()


def test_a_chat_goes_on_in_its_own_row_to_the_token(serve):
    bench, server = serve()
    prompt = numbers(150)
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 83)
    server.done(slot, said)
    before = bench.cache.stats().map_calls
    again, hit = server.serve([*said, 1, 2, 3])
    assert (again, hit) == (slot, 233)
    # Nothing is mapped: the end of the prompt is where it was.
    assert bench.cache.stats().map_calls == before
    # Other words at the end, and the prompt's end is what is found.
    server.done(again, [*said, 1, 2, 3])
    assert server.serve([*said[:200], 9, 9])[1] == BLOCK


def test_a_row_that_the_device_still_reads_is_copied_from(serve):
    _, server = serve()
    prompt, later = numbers(300), Later()
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 30)
    server.index.publish(slot, said)
    server.index.release(slot, after=later.fence)
    other, hit = server.serve([*said, 1, 2])
    assert hit == 330
    assert other is not slot
    server.check(slot, said)
    later.come()


def test_a_row_that_has_not_the_window_of_what_it_published_is_not_kept(serve):
    _, server = serve()
    prompt = numbers(300)
    slot, _ = server.serve(prompt)
    server.say(slot, prompt, 200)
    server.index.release(slot)
    # The end of the prompt, and not the row.
    assert server.index.stats().kept_slots == 1


def test_what_was_forgotten_is_not_found_in_what_was_kept_of_it(serve):
    _, server = serve()
    prompt = numbers(300)
    slot, _ = server.serve(prompt)
    assert server.index.stats().kept_slots == 1
    server.index.forget(slot)
    assert server.index.stats().kept_slots == 0
    assert server.serve(prompt)[1] == 0


def test_another_salt_finds_nothing(serve):
    _, server = serve()
    prompt = numbers(300)
    slot, _ = server.serve(prompt)
    server.done(slot, server.say(slot, prompt, 10))
    assert server.serve([*prompt, *[7] * 10, 1], "b")[1] == 0
    assert server.serve([*prompt, *[7] * 10, 1], "a")[1] == 310


def test_kept_windows_never_make_anything_fail(serve):
    bench, server = serve(slots=2, pages=2 * 8 + 4 * 16)
    for start in (1, 2000, 4000):
        slot, hit = server.serve(numbers(400, start))
        assert hit == 0
        server.done(slot, numbers(400, start))
    slots = [bench.cache.acquire(0) for _ in range(2)]
    with pytest.raises(OutOfSlots):
        bench.cache.acquire(0)
    assert server.index.stats().kept_slots == 0
    for slot in slots:
        bench.cache.release(slot)
    assert bench.cache.can_admit(1024)
    bench.cache.admit(1024)
    bench.check_books()


def test_for_a_window_no_more_than_one_kept_slot_goes(serve):
    bench, server = serve(slots=4)
    for start in (1, 2000):
        slot, _ = server.serve(numbers(200, start))
        server.index.forget(slot)
        server.done(slot, numbers(200, start))
    held = [bench.cache.acquire(0)]
    assert server.index.stats().kept_slots == 2
    server.serve(numbers(300, 5000))
    assert server.index.stats().evicted_slots == 1
    assert server.index.stats().kept_slots == 2
    bench.cache.release(held.pop())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("background", [False, True])
def test_random_requests_read_what_they_would_have_computed(serve, open_bench, seed, background):
    spec = grouped_spec(max_slots=8)
    bench = open_bench(spec, shares=True, pages=100, background=background)
    server = Server(bench)
    requests = Random(server, random.Random(seed))
    for _ in range(150):
        requests.act()
        requests.check()
        if not background:
            bench.check_books()
    assert requests.hits > 8
    for slot in requests.live:
        server.index.release(slot)
    server.index.close()
    bench.cache.drain()
    assert bench.check_books().pages_live == 0
