# SPDX-License-Identifier: Apache-2.0
"""Captured decode steps of models that keep states, without a GPU: a tape stands in for a graph.

It holds the operators of one run and the tensors that they read and wrote, and replays these alone:
none of the model's code, nor of ours, runs again.
"""

from __future__ import annotations

import pytest
from test_captured_steps import HOST_READS, OnDevice
from test_state_batches import alone, open_kv
from test_states import MODELS, PROMPTS, tiny
from tiny_models import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyvattn import errors
from pyvattn.attention import registry
from pyvattn.integrations.transformers import Engine, decode
from pyvattn.integrations.transformers import engine as engines

NEW = 24
# A graph holds no copy of what is made on the host either.
REFUSED = {*HOST_READS, "lift_fresh"}


class Tape(TorchDispatchMode):
    """Records operators; what they made is written again, where it lies, by :meth:`replay`."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in REFUSED, f"{name} cannot be captured"
        result = function(*args, **(kwargs or {}))
        known = {_memory(each) for each in _tensors((args, kwargs))}
        made = [(i, t) for i, t in enumerate(_tensors(result)) if _memory(t) not in known]
        self.calls.append((function, args, kwargs or {}, made))
        return result

    def replay(self):
        for function, args, kwargs, made in self.calls:
            again = _tensors(function(*args, **kwargs))
            for i, tensor in made:
                tensor.copy_(again[i])


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor):
    return tensor.untyped_storage().data_ptr()


class Recorder:
    """Stands in for CUDA graphs; ``recorded`` counts them, ``replayed`` their replays."""

    recorded = replayed = 0

    def __init__(self, device):
        pass

    def record(self, work):
        tape = Tape()
        with tape:
            work()
        Recorder.recorded += 1

        def replay():
            Recorder.replayed += 1
            tape.replay()

        return replay


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def expected(model):
    return [alone(model, prompt, NEW) for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def _graphs(monkeypatch):
    monkeypatch.setattr(Recorder, "recorded", 0)
    monkeypatch.setattr(Recorder, "replayed", 0)
    monkeypatch.setattr(registry, "_KERNELS", {OnDevice.name: OnDevice(), **registry._KERNELS})
    monkeypatch.setattr(decode, "Recorder", Recorder)
    monkeypatch.setattr(engines, "wants_graphs", lambda model, cache, asked: asked is not False)


def test_requests_that_join_and_leave_get_the_tokens_they_get_alone(model, expected):
    with (
        open_kv(model, slots=4) as kv,
        Engine(model, kv, max_prefill_tokens=16, lookahead=True) as engine,
    ):
        requests = []
        for prompt, new in zip(PROMPTS * 2, (20, 4, 9, 24, 11, 24, 3, 17), strict=True):
            requests.append(engine.submit(prompt, new))
            engine.step()
            engine.step()
        engine.run()
    assert Recorder.recorded == 3  # batches of 1, 2 and 4: they join two steps apart
    assert Recorder.replayed > 20
    for request, output in zip(requests, expected * 2, strict=True):
        assert request.output == output[: request.max_new_tokens]


def test_requests_that_go_to_other_slots_take_their_states_along(model, expected):
    """More requests than slots: a row of a step is now this slot, now that."""
    with open_kv(model, slots=3) as kv, Engine(model, kv) as engine:
        engine.capture(2)
        recorded = Recorder.recorded
        requests = [engine.submit(prompt, NEW) for prompt in [*PROMPTS, *PROMPTS[::-1]]]
        engine.run()
        assert Recorder.recorded == recorded == 2
    assert [request.output for request in requests] == [*expected, *expected[::-1]]


@pytest.mark.parametrize("asked", [None, True])
def test_code_that_cannot_be_captured_runs_as_it_is_unless_graphs_are_insisted_on(
    monkeypatch, caplog, asked
):
    def refuse(self, work):
        work()
        raise errors.UnsupportedError("the model's decode step cannot be captured: it waits")

    monkeypatch.setattr(Recorder, "record", refuse)
    model = tiny("Bamba")
    with open_kv(model, slots=4) as kv, Engine(model, kv, graphs=asked) as engine:
        assert engine.graphs
        requests = [engine.submit(prompt, NEW) for prompt in PROMPTS[:3]]
        if asked:
            with pytest.raises(errors.UnsupportedError, match="it waits"):
                engine.run()
            return
        engine.run()
        assert not engine.graphs
        engine.capture(4)
    assert [request.output for request in requests] == [alone(model, p, NEW) for p in PROMPTS[:3]]
    assert caplog.text.count("it waits") == 1
