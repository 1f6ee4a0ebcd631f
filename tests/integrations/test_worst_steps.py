# SPDX-License-Identifier: Apache-2.0
"""``bench transformers --steps``: what slow steps are put down to, and a run on the CPU."""

from __future__ import annotations

import gc
import itertools
import json
from contextlib import closing
from types import SimpleNamespace

import pytest
from tiny_models import torch

from pyvattn.bench import random_model, worst_steps
from pyvattn.bench.engines import Ours
from pyvattn.bench.report import Report, Setup
from pyvattn.bench.serving import Load
from pyvattn.bench.transformers import Options, measure
from pyvattn.bench.worst_steps import (
    BEHIND,
    CAPTURE,
    CAUSES,
    COLLECT,
    MAP,
    NOTHING,
    SWITCHED,
    ZERO,
    Step,
    decoding_alone,
)
from pyvattn.errors import ConfigError

SMALL = {"model": "tiny", "device": "cpu", "requests": 3, "prompt_tokens": 6, "new_tokens": 12}


def step(seconds=1.0, prompts=False, **did):
    return Step(seconds, prompts, {**dict.fromkeys(CAUSES[:-1], 0.0), **did})


@pytest.mark.parametrize(
    ("did", "cause"),
    [
        ({MAP: 0.6}, MAP),
        ({MAP: 0.4}, NOTHING),  # not half of what it took longer
        ({MAP: 0.5, ZERO: 0.7}, ZERO),
        ({BEHIND: 3.0}, BEHIND),
        ({COLLECT: 0.5, SWITCHED: 4}, COLLECT),
        ({CAPTURE: 1, SWITCHED: 4}, CAPTURE),
        ({MAP: 0.1, SWITCHED: 1}, SWITCHED),
        ({}, NOTHING),
    ],
)
def test_a_slow_step_is_put_down_to_what_took_half_of_the_excess(did, cause):
    assert step(2.0, **did).cause(usual=1.0) == cause


def test_steps_with_prompts_and_those_behind_them_are_left_out():
    steps = [step(), step(2.0), step(9.0, prompts=True), step(8.0), step(3.0, **{MAP: 1.0})]
    assert [each.seconds for each in decoding_alone(steps)] == [2.0, 3.0]


def test_what_the_step_before_did_counts():
    """The engine waits for a launch one step later."""
    first, second = decoding_alone([step(), step(**{CAPTURE: 1}), step(5.0)])
    assert (first.cause(0.9), second.cause(1.0)) == (CAPTURE, CAPTURE)


@pytest.fixture
def ours():
    prompts = random_model.make_prompts("tiny", 3, 6)
    model = random_model.make_model("tiny", "cpu")
    load = Load(prompts, [0.0] * 3, 12)
    made = Ours(model, load, device="cpu", driver="auto", page_size="auto", layout="auto")
    with closing(made):
        yield made


def found(ours, steps=40, **limit):
    prompts = (random_model.make_prompts("tiny", 1, 6, seed)[0] for seed in itertools.count())
    values = list(worst_steps.worst_steps(ours, prompts, 3, 12, steps, gpu=False, **limit))
    setups = [each for each in values if isinstance(each, Setup)]
    return setups[0].values["steps"], {each.name: each for each in values if each not in setups}


def test_a_step_that_collects_garbage_is_found(ours, monkeypatch):
    """Four steps in a row, one of which decodes alone, pass over very many objects."""
    calls = itertools.count()
    real = ours.engine.step
    many = [[number] for number in range(1_000_000)]

    def collects():
        if 20 <= next(calls) < 24:
            gc.collect()
        return real()

    monkeypatch.setattr(ours.engine, "step", collects)
    before = list(gc.callbacks)
    slow, _ = found(ours)
    assert many
    assert COLLECT in {each["cause"] for each in slow}
    assert gc.callbacks == before


def test_every_step_is_counted_and_requests_join_and_leave(ours):
    waited = []
    real = ours.engine.step
    submitted = []
    take = ours.engine.submit
    ours.engine.submit = lambda *args: submitted.append(args) or take(*args)
    ours.engine.step = lambda: waited.append(len(ours.engine.running)) or real()
    _, measures = found(ours)
    # The first step has nobody yet.
    assert len(waited) == 41
    assert len(submitted) > 3
    assert set(waited[1:]) <= {2, 3}
    p50 = measures["a step that decodes alone, p50"]
    alone = int(p50.note.partition(" of 40 steps")[0])
    assert 2 <= alone < 40
    slow = [measures[f"a step that decodes alone, over 1.1 x p50: {cause}"] for cause in CAUSES]
    assert 0 <= sum(each.value for each in slow) < alone
    ratio = measures["a step that decodes alone, p99 / p50"]
    assert ratio.ok is None
    assert ratio.value == pytest.approx(
        measures["a step that decodes alone, p99"].value / p50.value
    )


def test_no_step_begins_past_the_limit(ours, monkeypatch):
    """By a clock of which each look takes a second: two a step, and two a garbage collection."""
    clock = itertools.count()
    monkeypatch.setattr(
        worst_steps, "time", SimpleNamespace(perf_counter=lambda: float(next(clock)))
    )
    _, measures = found(ours, until=60.0)
    run = int(measures["a step that decodes alone, p50"].note.split()[-2])
    assert 2 <= run <= 31


def test_a_run_from_the_command_is_written_as_json():
    measures = list(measure(Options(**SMALL, steps=30)))
    setup = next(each for each in measures if isinstance(each, Setup))
    report = Report(
        "transformers", [each for each in measures if each is not setup], setups=(setup,)
    )
    written = json.loads(json.dumps(report.as_dict()))
    assert "cpu" not in written["worst_steps"]["ours"]
    assert torch.is_grad_enabled()


def test_steps_without_one_that_decodes_alone_are_refused():
    with pytest.raises(ConfigError, match="raise --steps, --new-tokens or --seconds"):
        list(measure(Options(**{**SMALL, "new_tokens": 2}, steps=5)))


def test_steps_and_profile_are_two_things():
    with pytest.raises(ConfigError, match="profile and steps=5"):
        list(measure(Options(**SMALL, profile=True, steps=5)))
