# SPDX-License-Identifier: Apache-2.0
"""Requests that leave for want of memory go to host memory and back, or are computed anew."""

from __future__ import annotations

import pytest
from test_engine import PAGE, TIGHT, expected_output, open_kv
from test_windows import WINDOW, tiny
from tiny_models import make_llama, random_prompts, torch

from pyvattn import ConfigError, KVCache, OutOfMemory
from pyvattn.attention import set_scales
from pyvattn.attention.kv_scales import scales_of
from pyvattn.integrations.transformers import Engine, Preemptions, spec_for
from pyvattn.integrations.transformers.rates import FastestRate

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")

# Each begins with a page and grows into a second; there are five pages.
LENGTHS = [160, 155, 150, 145]
NEW = 30


@pytest.fixture
def tight(llama):
    with open_kv(llama, slots=4, memory=5 * PAGE, **TIGHT) as kv:
        yield kv


@pytest.fixture
def prompt_tokens(monkeypatch):
    """How many tokens of prompts an engine has run so far."""

    def watch(engine):
        ran = []
        prefill = engine._batch.prefill

        def counted(chunks, tokens, samplers):
            ran.append(len(tokens))
            return prefill(chunks, tokens, samplers)

        monkeypatch.setattr(engine._batch, "prefill", counted)
        return ran

    return watch


def submit_all(engine):
    return [engine.submit(prompt, NEW) for prompt in random_prompts(LENGTHS)]


def check_as_alone(model, requests):
    for request in requests:
        assert request.done
        assert request.swapped is None
        assert request.output == expected_output(model, request.prompt, request.max_new_tokens)


def until_swapped(engine, requests):
    """Step until one of the requests waits in host memory, and return it."""
    while engine.busy:
        engine.step()
        for request in requests:
            if request.swapped is not None:
                return request
    raise AssertionError("no request was preempted")


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("prefix_reuse", [False, True])
def test_what_was_swapped_is_not_computed_again(
    llama, tight, prompt_tokens, lookahead, prefix_reuse
):
    options = {"lookahead": lookahead, "prefix_reuse": prefix_reuse}
    with Engine(llama, tight, preemption="swap", **options) as engine:
        ran = prompt_tokens(engine)
        requests = submit_all(engine)
        engine.run()
        counts = engine.preemptions()
    assert counts.swapped >= 2
    assert counts.recomputed == counts.refused == 0
    assert counts.bytes_in == counts.bytes_out > 0
    assert counts.swapped_now == counts.host_bytes == 0
    # Its newest token is all that each has to run when it comes back.
    assert sum(ran) == sum(LENGTHS) + counts.swapped
    check_as_alone(llama, requests)


def test_without_swapping_every_token_is_computed_again(llama, tight, prompt_tokens):
    with Engine(llama, tight, preemption="recompute", prefix_reuse=False) as engine:
        ran = prompt_tokens(engine)
        requests = submit_all(engine)
        engine.run()
        counts = engine.preemptions()
    assert counts == Preemptions(recomputed=counts.recomputed)
    assert sum(ran) >= sum(LENGTHS) + counts.recomputed * min(LENGTHS)
    check_as_alone(llama, requests)


def test_host_memory_is_counted_while_a_request_waits_there(llama, tight):
    with Engine(llama, tight, preemption="swap") as engine:
        request = until_swapped(engine, submit_all(engine))
        counts = engine.preemptions()
        assert request.slot is None
        assert request.swapped.length == request.length - 1
        size = request.swapped.length * tight.geometry.token_bytes * tight.geometry.arenas
        assert counts.swapped_now == 1
        assert counts.host_bytes == counts.bytes_out == size


def test_a_prompt_that_is_half_done_goes_on_where_it_was(llama, prompt_tokens):
    first, second = random_prompts([160, 150])
    with open_kv(llama, slots=2, memory=2 * PAGE, **TIGHT) as kv:
        options = {"max_prefill_tokens": 8, "prefix_reuse": False, "lookahead": False}
        with Engine(llama, kv, preemption="swap", **options) as engine:
            ran = prompt_tokens(engine)
            older = engine.submit(first, NEW)
            while not older.ready:
                engine.step()
            younger = engine.submit(second, 5)
            assert until_swapped(engine, [younger]).swapped.length < len(second)
            engine.run()
        assert sum(ran) == len(first) + len(second)
    check_as_alone(llama, [older, younger])


@pytest.mark.parametrize("family", ["Mistral", "Gemma2"])
@pytest.mark.parametrize("prefix_reuse", [False, True])
def test_layers_with_windows_come_back_with_their_windows(family, prefix_reuse):
    model = tiny(family, num_key_value_heads=4)
    spec = spec_for(model, max_slots=12, max_tokens=256)
    pages = {"page_size": PAGE, "layout": "token", "read_ahead": 0}
    groups = spec.geometries("token", PAGE, None)
    # Each begins with a page in every group, and goes past two windows and into the next.
    whole = PAGE // groups[0].token_bytes
    prompts = random_prompts([whole - 3, whole - 6, whole - 10])

    def outputs(memory, **options):
        with (
            KVCache(spec, device="cpu", memory=memory, **pages) as kv,
            Engine(model, kv, prefix_reuse=prefix_reuse, **options) as engine,
        ):
            requests = [engine.submit(prompt, 2 * WINDOW + 5) for prompt in prompts]
            engine.run()
            return [request.output for request in requests], engine.preemptions()

    expected, none = outputs("64MiB")
    assert none == Preemptions()
    found, counts = outputs(3 * len(groups) * PAGE, preemption="swap")
    assert counts.swapped > 0
    assert found == expected


def test_float8_comes_back_with_the_scales_that_it_was_made_with(llama):
    spec = spec_for(llama, max_slots=4, max_tokens=1024, dtype="float8_e4m3fn")
    prompts = random_prompts([675, 670, 668, 665])
    scales = None

    def outputs(memory, **options):
        nonlocal scales
        pages = {"page_size": "64K", "layout": "token"}
        with KVCache(spec, device="cpu", memory=memory, **pages) as kv:
            if scales is not None:
                set_scales(kv, scales)
            with Engine(llama, kv, **options) as engine:
                requests = [engine.submit(prompt, NEW) for prompt in prompts]
                engine.run()
                scales = scales_of(kv)
                return [request.output for request in requests], engine.preemptions()

    expected, _ = outputs("64MiB")
    found, counts = outputs(5 * PAGE, preemption="swap")
    assert counts.swapped > 0
    assert found == expected


def test_what_others_still_have_is_shared_again_and_not_copied():
    model = make_llama(head_dim=128, num_key_value_heads=8)
    spec = spec_for(model, max_slots=6, max_tokens=1024)
    # Sixteen tokens a page: both share two of them in each arena.
    shared, first, second = random_prompts([32, 5, 6])
    pages = {"page_size": PAGE, "layout": "layer", "read_ahead": 0}
    arenas = spec.geometry("layer", PAGE).arenas
    with KVCache(spec, device="cpu", memory=arenas * 7 * PAGE, **pages) as kv:
        with Engine(model, kv, preemption="swap", lookahead=False) as engine:
            older = engine.submit(shared + first, 50)
            younger = engine.submit(shared + second, 40)
            until_swapped(engine, [younger])
            engine.run()
            counts = engine.preemptions()
        saved = 32 * kv.geometry.token_bytes * arenas
        assert counts.bytes_in == counts.bytes_out - counts.swapped * saved
    check_as_alone(model, [older, younger])


def test_a_request_that_is_cancelled_in_host_memory_leaves_nothing(llama, tight):
    with Engine(llama, tight, preemption="swap") as engine:
        requests = submit_all(engine)
        gone = until_swapped(engine, requests)
        known = list(gone.output)
        engine.cancel(gone)
        assert gone.swapped is None
        assert engine.preemptions().host_bytes == 0
        engine.run()
    assert gone.output == known
    check_as_alone(llama, [request for request in requests if request is not gone])


def test_closing_leaves_nothing_in_host_memory(llama, tight):
    with Engine(llama, tight, preemption="swap") as engine:
        request = until_swapped(engine, submit_all(engine))
    assert request.swapped is None
    assert engine.preemptions().host_bytes == 0
    assert tight.stats().slots_live == 0


def no_bytes(*size, dtype=None, real=torch.empty, **options):
    if dtype is torch.uint8:
        raise RuntimeError("no such memory, as torch says it")
    return real(*size, dtype=dtype, **options)


def test_without_host_memory_requests_are_computed_anew(llama, tight, monkeypatch):
    with Engine(llama, tight, preemption="swap") as engine:
        requests = submit_all(engine)
        monkeypatch.setattr(torch, "empty", no_bytes)
        engine.run()
        monkeypatch.undo()
        counts = engine.preemptions()
    assert counts == Preemptions(recomputed=counts.recomputed, refused=counts.recomputed)
    assert counts.refused > 0
    check_as_alone(llama, requests)


def test_an_offload_without_host_memory_says_how_much_and_changes_nothing(
    llama, tight, monkeypatch
):
    slot = tight.admit(100)
    tight.drain()
    before = tight.stats()
    monkeypatch.setattr(torch, "empty", no_bytes)
    with pytest.raises(OutOfMemory, match=r"no host memory for 37\.5 KiB") as caught:
        tight.offload(slot)
    assert caught.value.requested == 100 * tight.geometry.token_bytes
    assert tight.stats() == before


def test_host_memory_has_a_bound(llama, tight):
    # Room for one of them at a time.
    with Engine(llama, tight, preemption="swap", swap_memory="70KiB") as engine:
        most = 0
        requests = submit_all(engine)
        while engine.busy:
            engine.step()
            most = max(most, engine.preemptions().host_bytes)
        counts = engine.preemptions()
    assert 0 < most <= 70 << 10
    assert counts.swapped > 0
    assert counts.refused == counts.recomputed > 0
    check_as_alone(llama, requests)


@pytest.mark.parametrize("cheaper", ["swapped", "recomputed"])
def test_auto_takes_what_the_rates_say(llama, tight, cheaper):
    with Engine(llama, tight, prefix_reuse=False) as engine:
        rates = {"swapped": engine._swap.copy_rate, "recomputed": engine._swap.prefill_rate}
        # The fastest counts: no machine measures one that is faster.
        rates[cheaper].note(10**30, 1.0)
        requests = submit_all(engine)
        engine.run()
        counts = engine.preemptions()
    preempted = counts.swapped + counts.recomputed
    assert preempted == getattr(counts, cheaper) > 0
    assert counts.refused == 0
    check_as_alone(llama, requests)


def test_a_copy_that_fails_on_the_way_back_loses_neither_slot_nor_tokens(llama, tight, monkeypatch):
    with Engine(llama, tight, preemption="swap") as engine:
        requests = submit_all(engine)
        kept = until_swapped(engine, requests)
        refill = tight._refill

        def fail(*arguments):
            monkeypatch.setattr(tight, "_refill", refill)
            raise RuntimeError("a copy that fails")

        monkeypatch.setattr(tight, "_refill", fail)
        with pytest.raises(RuntimeError, match="a copy that fails"):
            engine.run()
        assert kept.swapped is not None
        engine.run()
    assert tight.stats().slots_live == 0
    check_as_alone(llama, requests)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preemption": "maybe"}, "preemption='maybe': use one of auto, swap, recompute"),
        ({"swap_memory": 0}, "swap_memory 0"),
        ({"swap_memory": "much"}, "swap_memory 'much'"),
    ],
)
def test_options_that_mean_nothing_are_refused(llama, tight, options, words):
    with pytest.raises(ConfigError, match=words):
        Engine(llama, tight, **options)


def test_a_rate_is_the_fastest_so_far_and_assumed_before():
    rate = FastestRate(torch.device("cpu"), assumed=5.0)
    assert rate.a_second == 5.0
    for amount, seconds in ((8, 4.0), (9, 3.0), (1, 1.0), (0, 1.0)):
        rate.note(amount, seconds)
    assert rate.a_second == 3.0
    with rate.timing(10**15):
        pass
    assert rate.a_second > 3.0
