# SPDX-License-Identifier: Apache-2.0
"""The engine in examples/ gives a plain model's tokens, whatever it batches, forks or drops."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyvattn import KVCache, OutOfMemory

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "engine.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("engine_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_example"] = module  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["engine_example"]


@pytest.fixture(scope="module")
def model(example):
    torch.manual_seed(5)
    made = example.TinyModel()
    with torch.no_grad():  # so that what comes next depends on all that was said
        for part in made.qkv:
            part.weight *= 4
    return made


def open_cache(example, memory="64MiB"):
    return KVCache(example.SPEC, device="cpu", memory=memory, page_size="64K", layout="layer")


def written_out(layer, q, k, v):
    """Causal attention over all tokens at once, without a cache."""
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


@torch.no_grad()
def expected(model, prompt, new_tokens):
    tokens = list(prompt)
    for _ in range(new_tokens):
        logits = model(torch.tensor(tokens), torch.arange(len(tokens)), written_out)
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :]


def run(engine):
    while engine.step():
        pass


class Watched:
    """What a request is asked for, and what its callback has got."""

    def __init__(self, engine, prompt, new_tokens, parent=None):
        self.prompt, self.new_tokens, self.got = prompt, new_tokens, []
        if parent is None:
            self.request = engine.submit(prompt, new_tokens, self.got.append)
        else:
            self.prompt = [*parent.request.tokens, *prompt]
            self.request = engine.fork(parent.request, prompt, new_tokens, self.got.append)


def make_requests(engine, rng):
    """Random requests that come while others run; some are forked, some cancelled."""
    live, cancelled = [], []
    for _ in range(24):
        prompt = [rng.randrange(97) for _ in range(rng.randrange(1, 90))]
        live.append(Watched(engine, prompt, rng.randrange(1, 12)))
        if rng.random() < 0.4:
            live.append(Watched(engine, [rng.randrange(97)], 5, rng.choice(live)))
        if rng.random() < 0.3:
            victim = live.pop(rng.randrange(len(live)))
            engine.cancel(victim.request)
            cancelled.append((victim, len(victim.got)))
        for _ in range(rng.randrange(4)):
            engine.step()
    run(engine)
    return live, cancelled


def test_every_request_gets_the_tokens_of_the_plain_model(example, model):
    with open_cache(example) as cache:
        engine = example.Engine(model, cache)
        live, cancelled = make_requests(engine, random.Random(3))
        for each in live:
            assert each.got == expected(model, each.prompt, each.new_tokens)
        assert cancelled
        for victim, had in cancelled:
            assert len(victim.got) == had
        assert cache.live_slots() == {}


def test_the_next_token_depends_on_what_lies_far_back(model):
    prompts = [[first, *range(60)] for first in range(8)]
    assert len({tuple(expected(model, prompt, 4)) for prompt in prompts}) > 1


def test_prompts_come_in_chunks_beside_tokens_of_others(example, model):
    with open_cache(example) as cache:
        engine = example.Engine(model, cache, step_tokens=16)
        talker = engine.submit([1, 2, 3], 20)
        engine.step()
        reader = engine.submit(range(64), 2)
        before = len(talker.tokens)
        for step in range(1, 5):
            engine.step()
            assert (reader.computed, len(talker.tokens)) == (15 * step, before + step)
        run(engine)
        assert reader.tokens[64:] == expected(model, range(64), 2)


def test_a_fork_shares_pages_with_what_it_goes_on_from(example, model):
    with open_cache(example) as cache:
        engine = example.Engine(model, cache, step_tokens=700)
        first = engine.submit([at % 97 for at in range(600)], 3)
        engine.step()
        alone = cache.stats().pages_live
        twin = engine.fork(first, [5], 2)
        assert twin.computed == first.computed == 600
        assert cache.stats().pages_live < 2 * alone
        run(engine)


def test_short_memory_sends_the_newest_back_and_changes_no_token(example, model, monkeypatch):
    sent_back = []
    back = example.Engine._leave
    monkeypatch.setattr(
        example.Engine,
        "_leave",
        lambda self, request: (
            (request.new_tokens and sent_back.append(request)) or back(self, request)
        ),
    )
    # A page of 64K holds 512 tokens, and a slot takes one for each K and V: four requests fit.
    with open_cache(example, memory=16 << 16) as cache:
        engine = example.Engine(model, cache, step_tokens=2048)
        prompts = [[at * (3 + which) % 97 for at in range(505)] for which in range(4)]
        requests = [engine.submit(prompt, 12) for prompt in prompts]
        run(engine)
        assert sent_back
        for prompt, request in zip(prompts, requests, strict=True):
            assert request.tokens[505:] == expected(model, prompt, 12)


def test_a_request_that_no_cache_of_this_size_holds_says_so(example, model):
    with open_cache(example, memory=4 << 16) as cache:
        engine = example.Engine(model, cache)
        engine.submit([1] * 600, 1)
        with pytest.raises(OutOfMemory):
            run(engine)
        with pytest.raises(ValueError, match="do not fit"):
            engine.submit([1] * 1024, 1)


def test_who_listens_may_cancel_itself_and_who_is_told_next(example, model):
    with open_cache(example) as cache:
        engine = example.Engine(model, cache)
        heard, other = [], []

        def hang_up(token):
            heard.append(token)
            engine.cancel(request)
            engine.cancel(neighbour)

        request = engine.submit([1, 2, 3], 50, hang_up)
        neighbour = engine.submit([4, 5], 50, other.append)
        run(engine)
        assert heard == expected(model, [1, 2, 3], 1)
        assert not other
        assert cache.live_slots() == {}


def test_the_example_runs_as_it_stands():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("first ") == 12
    assert done.stdout.count("  fork ") == 6
    assert "0 slots live" in done.stdout
