# SPDX-License-Identifier: Apache-2.0
"""Captured decode steps without a GPU: the work that a graph would hold is run again instead.

What a graph cannot do is refused: no value of a tensor may reach the host, and the
tensors of a step are those of its capture.
"""

from __future__ import annotations

import pytest
from test_engine import SHAPES, expected_output, open_kv
from tiny_models import make_gpt2, make_llama, random_prompts, torch, transformers
from torch.utils._python_dispatch import TorchDispatchMode

from pyvattn.attention import Kernel, registry
from pyvattn.integrations.transformers import Engine, decode, engine

HOST_READS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2"}


class NoHostReads(TorchDispatchMode):
    """Raises where an operator needs a value on the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in HOST_READS, f"{name} reads a value on the host"
        return function(*args, **(kwargs or {}))


class OnDevice(Kernel):
    """Attends by a mask over whole rows: slow, and with slots and lengths as tensors."""

    name = "on-device"
    supports = "tests"
    capturable = True

    def attend(self, problem):
        k, v = (t[problem.device_slots.long()].transpose(1, 2) for t in (problem.k, problem.v))
        queries, tokens = problem.q.shape[1], k.shape[2]
        query, token = (torch.arange(n, device=k.device) for n in (queries, tokens))
        mask = token <= (problem.device_lengths[:, None] - queries + query)[:, :, None]
        out = torch.nn.functional.scaled_dot_product_attention(
            problem.q.transpose(1, 2),
            k,
            v,
            attn_mask=mask[:, None],
            scale=problem.scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2)


class Recorder:
    """Stands in for CUDA graphs; ``sizes`` counts what was recorded."""

    recorded = 0

    def __init__(self, device):
        pass

    def record(self, work):
        Recorder.recorded += 1

        def replay():
            with NoHostReads():
                work()

        replay()
        return replay


@pytest.fixture(autouse=True)
def _graphs(monkeypatch):
    monkeypatch.setattr(Recorder, "recorded", 0)
    monkeypatch.setattr(registry, "_KERNELS", {OnDevice.name: OnDevice(), **registry._KERNELS})
    monkeypatch.setattr(decode, "Recorder", Recorder)
    monkeypatch.setattr(engine, "wants_graphs", lambda model, cache, asked: asked is not False)


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_requests_that_join_and_leave_get_the_tokens_they_get_alone(make, layout, lookahead):
    model = make()
    prompts = random_prompts([prompt for prompt, _ in SHAPES])
    with open_kv(model, slots=4, layout=layout) as kv:
        with Engine(model, kv, lookahead=lookahead, max_prefill_tokens=32) as engine:
            shapes = zip(prompts, SHAPES, strict=True)
            requests = [engine.submit(prompt, new) for prompt, (_, new) in shapes]
            engine.run()
            assert kv.stats().slots_live == 1, "the slot that fills up batches stays"
        assert kv.stats().slots_live == 0
    assert Recorder.recorded == 2  # batches of 1 and 4, which does for 2 and 3
    for request in requests:
        assert request.output == expected_output(model, request.prompt, request.max_new_tokens)


def test_nothing_is_uploaded_while_the_batch_stays_the_same(llama, monkeypatch):
    uploads = []
    real = decode.upload
    with open_kv(llama, slots=4) as kv, Engine(llama, kv) as engine:
        requests = [engine.submit(prompt, 20) for prompt in random_prompts([5, 9, 3])]
        engine.step()
        monkeypatch.setattr(decode, "upload", lambda *a: uploads.append(a) or real(*a))
        for _ in range(10):
            engine.step()
        assert len(uploads) == 1
        engine.cancel(requests[1])
        engine.step()
        engine.step()
        assert len(uploads) == 2


def test_chunks_of_about_one_size_attend_in_one_call(llama, monkeypatch):
    shapes = []
    real = OnDevice.attend

    def attend(self, problem):
        shapes.append(tuple(problem.q.shape[:2]))
        return real(self, problem)

    monkeypatch.setattr(OnDevice, "attend", attend)
    prompts = random_prompts([20, 15, 25, 3, 1, 32])
    with open_kv(llama, slots=8) as kv, Engine(llama, kv) as engine:
        requests = [engine.submit(prompt, 6) for prompt in prompts]
        engine.step()
        assert shapes == [(3, 32), (1, 15), (1, 3), (1, 1)] * 3
        engine.run()
    for request in requests:
        assert request.output == expected_output(llama, request.prompt, 6)


def test_captures_between_steps_touch_no_request_and_are_used(llama):
    prompts = random_prompts(range(1, 10))
    with open_kv(llama, slots=20) as kv, Engine(llama, kv) as engine:
        requests = [engine.submit(prompt, 12) for prompt in prompts]
        for _ in range(4):
            engine.step()
        assert Recorder.recorded == 1  # 16 rows for 9
        engine.capture(12)
        assert Recorder.recorded == 7  # and 1, 2, 4, 8, 10, 12
        engine.run()
    for request in requests:
        assert request.output == expected_output(llama, request.prompt, 12)


def test_what_was_captured_does_for_smaller_batches(llama):
    with open_kv(llama, slots=20) as kv, Engine(llama, kv) as engine:
        shapes = zip(random_prompts(range(1, 17)), range(1, 17), strict=True)
        requests = [engine.submit(prompt, 2 * new) for prompt, new in shapes]
        engine.run()
        assert Recorder.recorded == 2  # 16 rows, and 2 for what is less than a quarter of it
    for request in requests:
        assert request.output == expected_output(llama, request.prompt, request.max_new_tokens)


def test_the_filler_stays_one_token_long(llama):
    with open_kv(llama, slots=4) as kv, Engine(llama, kv) as engine:
        (filler,) = set(range(4)) - set(_rows(engine, kv))
        for prompt in random_prompts([5, 9, 3]):
            engine.submit(prompt, 30)
        k, _ = kv.layer(0)
        k[filler].fill_(7)
        engine.run()
        assert (k[filler, 0] != 7).all()
        assert (k[filler, 1:] == 7).all()


def _rows(engine, kv):
    """The slots that requests can have."""
    taken = [kv.acquire() for _ in range(kv.spec.max_slots - 1)]
    rows = [int(slot) for slot in taken]
    for slot in taken:
        kv.release(slot)
    return rows


def test_without_room_for_the_filler_no_slot_is_kept(llama):
    from pyvattn import errors

    with open_kv(llama, slots=2) as kv:
        held = [kv.acquire() for _ in range(2)]
        with pytest.raises(errors.OutOfSlots):
            Engine(llama, kv)
        kv.release(held[0])
        Engine(llama, kv).close()
        assert kv.stats().slots_live == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
        {"typical_p": 0.9},
        {"epsilon_cutoff": 0.01},
        {"suppress_tokens": [5, 6], "remove_invalid_values": True, "renormalize_logits": True},
    ],
)
def test_choosing_from_logits_alone_is_part_of_the_captured_step(llama, setting):
    config = transformers.GenerationConfig(do_sample=True, **setting)
    with open_kv(llama, slots=4) as kv, Engine(llama, kv, generation_config=config) as engine:
        requests = [engine.submit(prompt, 20) for prompt in random_prompts([5, 9, 3])]
        assert all(request.sampler is None for request in requests)
        engine.run()
    assert all(len(request.output) == 20 for request in requests)


def test_requests_with_options_of_their_own_use_captured_steps_beside_others(llama):
    prompts = random_prompts([5, 9, 3, 7])
    options = [{}, {"repetition_penalty": 1.5}, {}, {"no_repeat_ngram_size": 2}]
    with open_kv(llama, slots=5) as kv, Engine(llama, kv) as engine:
        engine.capture(4)
        before = Recorder.recorded
        requests = [engine.submit(p, 20, **o) for p, o in zip(prompts, options, strict=True)]
        engine.run()
        assert Recorder.recorded == before + 1  # four rows, with the logits kept
        plain = [engine.submit(prompt, 20) for prompt in prompts]
        engine.run()
        assert Recorder.recorded == before + 1
    for request, own in zip(requests, options, strict=True):
        assert request.output == expected_output(llama, request.prompt, 20, **own)
    for request in plain:
        assert request.output == expected_output(llama, request.prompt, 20)
