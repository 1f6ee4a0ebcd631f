# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike where windows are in rings: who goes on has a copy of the window."""

from __future__ import annotations

import random

import pytest
from prefix_server import Random, Server, numbers, patterns
from test_rings import WINDOW, ring_spec

pytest.importorskip("torch", reason="fork() copies with torch")

# Tokens that fill pages in both groups.
BLOCK = 64


@pytest.fixture
def serve(open_bench):
    def open_one(**options):
        spec = ring_spec(
            full=options.pop("full", True), max_slots=options.pop("slots", 8), max_tokens=1024
        )
        bench = open_bench(spec, shares=True, **{"pages": 512, **options})
        assert bench.cache.geometries[0].ring_tokens == 4 * BLOCK
        return bench, Server(bench)

    return open_one


@pytest.mark.parametrize("full", [False, True])
def test_a_prompt_is_found_after_its_row_has_written_over_it(serve, full):
    bench, server = serve(full=full)
    prompt = numbers(400)
    slot, _ = server.serve(prompt)
    server.say(slot, prompt, 600)
    other, hit = server.serve([*prompt[:390], 5])
    assert hit == 6 * BLOCK
    server.check(other, [*prompt[:390], 5])
    bench.check_books()


def test_whoever_goes_on_writes_to_a_ring_of_its_own(serve):
    _, server = serve()
    prompt = numbers(400)
    server.done(server.serve(prompt)[0], prompt)
    slots = [(server.serve([*prompt[:390], own])[0], [*prompt[:390], own]) for own in (5, 6, 7)]
    said = [(slot, server.say(slot, tokens, 300)) for slot, tokens in slots]
    for slot, tokens in said:
        server.check(slot, tokens)
    # And what was kept is as it was.
    assert server.serve([*prompt[:390], 8])[1] == 6 * BLOCK


def test_where_two_prompts_part_the_third_goes_on_though_the_ring_moved_on(serve):
    """Far behind it both prompts go on for more tokens than a ring has."""
    _, server = serve()
    system = numbers(2 * BLOCK + 10)
    for nth, hit in ((1, 0), (2, 0), (3, 2 * BLOCK), (4, 2 * BLOCK)):
        prompt = [*system, *numbers(700, nth * 1000)]
        slot, found = server.serve(prompt)
        assert found == hit
        server.done(slot, server.say(slot, prompt, 20))


def test_what_a_ring_has_no_more_when_it_is_published_is_not_kept(serve):
    _, server = serve()
    system = numbers(2 * BLOCK + 10)
    server.serve([*system, *numbers(700, 1000)])
    prompt = [*system, *numbers(700, 2000)]
    slot, _ = server.index.admit(prompt, salt="a")
    chunk = server.cache.chunk_tokens
    for begin in range(0, len(prompt), chunk):
        server.compute(slot, begin, prompt[: begin + chunk])
    server.index.publish(slot, prompt)
    # The end of it is there, and not where it parted from the other.
    assert server.index.stats().missed_snapshots == 1
    assert server.serve([*system, *numbers(300, 3000)])[1] == 0
    assert server.serve([*prompt, 1])[1] == len(prompt) // BLOCK * BLOCK


def test_a_row_is_found_no_further_back_than_its_ring_reaches(serve):
    _, server = serve()
    prompt = numbers(900)
    slot, _ = server.serve(prompt)
    server.index.forget(slot)
    server.index.publish(slot, prompt)
    assert server.hit_of([*prompt[:896], 5]) == 14 * BLOCK
    # The window before is there as long as nothing was written over it.
    least = 900 - 4 * BLOCK + WINDOW - 1
    found = -(-least // BLOCK) * BLOCK
    assert server.hit_of([*prompt[:found], 5]) == found
    assert server.hit_of([*prompt[: found - 1], 5]) == 0


def test_a_chat_goes_on_in_its_own_row_to_the_token(serve):
    bench, server = serve()
    prompt = numbers(350)
    slot, _ = server.serve(prompt)
    said = server.say(slot, prompt, 83)
    server.done(slot, said)
    assert server.serve([*said, 1, 2, 3]) == (slot, 433)
    bench.check_books()


def test_another_salt_finds_nothing(serve):
    _, server = serve()
    prompt = numbers(300)
    server.done(server.serve(prompt)[0], prompt)
    assert server.serve([*prompt, 1], "b")[1] == 0
    assert server.serve([*prompt, 1], "a")[1] == 300
    assert patterns("a", prompt) != patterns("b", prompt)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("background", [False, True])
def test_random_requests_read_what_they_would_have_computed(serve, seed, background):
    bench, server = serve(pages=100, background=background)
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
