# SPDX-License-Identifier: Apache-2.0
"""``bench vllm`` with engines that only say what they were asked."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from types import SimpleNamespace

import pytest

from pyvattn import ConfigError
from pyvattn.attention import registry
from pyvattn.bench import vllm as bench
from pyvattn.bench.report import Measure, Setup
from pyvattn.bench.serving import Load
from pyvattn.bench.vllm_engine import (
    Engine,
    EngineFailed,
    Served,
    _as_they_arrive,
    _kill_with_children,
    _run,
)
from pyvattn.bench.vllm_mask import KERNEL
from pyvattn.integrations.vllm.row_attention import kernel_name

OPTIONS = bench.Options(
    model="tiny",
    device="cpu",
    requests=4,
    new_tokens=2,
    long_tokens=50,
    decode_tokens=30,
    kv_gib=0.01,
)
STATS = dict.fromkeys(
    (
        "map_calls",
        "unmap_calls",
        "map_seconds",
        "driver_seconds",
        "fence_seconds",
        "blocks_placed",
        "pages_copied",
        "waits",
        "longest_wait_seconds",
    ),
    1.0,
) | {"waited_seconds": 0.004, "exposed_seconds": 0.002}


class FakeEngine:
    """Answers with a token that stands for the prompt; ours is a quarter faster."""

    log: list[tuple[str, int, int, bool]]
    made: dict[str, dict]
    asked: dict[str, list]
    arrivals: dict[str, list]
    wrong = False

    def __init__(self, name, model, layers, options, *, masked=False):
        self.name = name
        self.made[name] = {**options, "masked": masked}

    def wait(self):
        return "0.32.0"

    def serve(self, prompts, new_tokens, *, forget=False, arrivals=None):
        self.log.append((self.name, len(prompts), new_tokens, forget))
        self.arrivals[self.name] = arrivals
        counts = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
        seconds = {"stock": 1.0, "ours": 0.8}[self.name]
        tokens = [[sum(ids) % 97] * count for ids, count in zip(prompts, counts, strict=True)]
        if self.wrong and self.name == "ours":
            tokens[0] = tokens[0][:1] + [-1] * (new_tokens - 1)
        times = [seconds / 10] * len(prompts)
        return Served(seconds, prompts, tokens, times, times, 7, STATS)

    def margins(self, prompts):
        self.asked[self.name] = prompts
        return [0.25 * i for i in range(1, len(prompts) + 1)]

    def close(self):
        self.log.append((self.name, 0, 0, False))


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    monkeypatch.setattr(FakeEngine, "log", [], raising=False)
    monkeypatch.setattr(FakeEngine, "made", {}, raising=False)
    monkeypatch.setattr(FakeEngine, "asked", {}, raising=False)
    monkeypatch.setattr(FakeEngine, "arrivals", {}, raising=False)
    monkeypatch.setattr(bench, "Engine", FakeEngine)
    return FakeEngine


def measured(options):
    found = list(bench.measure(options))
    assert any(isinstance(item, Setup) for item in found)
    return {item.name: item for item in found if isinstance(item, Measure)}


def only(found, words):
    (name,) = [name for name in found if all(word in name for word in words)]
    return found[name]


def test_both_serve_the_same_by_turns_and_the_first_round_is_left_out(engines):
    found = measured(replace(OPTIONS, workload=("short",)))
    names = [name for name, count, _, _ in engines.log if count]
    assert names == ["stock", "ours", "ours", "stock", "stock", "ours"]
    assert only(found, ["requests with stock's tokens"]).note.startswith("12 of 12")
    ratio = only(found, ["ours / stock", "output"])
    assert (ratio.value, ratio.rounds, ratio.ok) == (pytest.approx(1.25), 2, True)
    assert only(found, ["waited"]).value == pytest.approx(0.005)
    assert only(found, ["idle"]).value == pytest.approx(0.0025)
    assert [name for name, count, _, _ in engines.log if not count] == ["ours", "stock"]


def test_one_wrong_token_is_counted_and_misses_the_target(engines, monkeypatch):
    monkeypatch.setattr(engines, "wrong", True)
    found = measured(replace(OPTIONS, workload=("short",)))
    equal = only(found, ["requests with stock's tokens"])
    assert (equal.value, equal.ok) == (pytest.approx(9 / 12), False)


@pytest.mark.parametrize(("eager", "ok"), [(True, False), (False, None)])
def test_tokens_must_be_equal_where_neither_engine_compiles(engines, monkeypatch, eager, ok):
    monkeypatch.setattr(engines, "wrong", True)
    found = measured(replace(OPTIONS, workload=("short",), device="cuda", eager=eager))
    assert only(found, ["requests with stock's tokens"]).ok is ok


def test_where_tokens_part_both_are_asked_how_near_the_likeliest_are(engines, monkeypatch):
    monkeypatch.setattr(engines, "wrong", True)
    found = measured(replace(OPTIONS, workload=("short",), ours_backend="CUSTOM"))
    assert engines.made["ours"]["scheduler_cls"] == "pyvattn.vllm.Scheduler"
    # Another kernel may break ties otherwise; each of three rounds had one.
    assert only(found, ["requests with stock's tokens"]).ok is None
    assert {name: len(prompts) for name, prompts in engines.asked.items()} == {
        "stock": 3,
        "ours": 3,
    }
    for prompt in engines.asked["ours"]:
        assert prompt[-1] == sum(prompt[:-1]) % 97  # as far as they agree
    margin = only(found, ["ours,", "widest margin"])
    assert (margin.value, margin.note) == (0.75, "median 0.500, of 3 requests")


def test_a_kernel_is_asked_of_ours_alone(engines):
    measured(replace(OPTIONS, workload=("short",), ours_kernel="flash-attn-3-paged"))
    plug_in = engines.made["ours"]["additional_config"]["pyvattn"]
    assert plug_in["kernel"] == "flash-attn-3-paged"
    assert "additional_config" not in engines.made["stock"]


def test_the_heads_of_both_are_shared_out_to_as_many_gpus(engines):
    measured(replace(OPTIONS, workload=("short",), tensor_parallel=2))
    for name in ("stock", "ours"):
        assert engines.made[name]["tensor_parallel_size"] == 2
    assert engines.made["ours"]["block_size"] == 32
    # 8 MiB: a token takes 1 KiB, and half of it in each of two GPUs.
    options = replace(OPTIONS, workload=("decode",), decode_requests=99, decode_tokens=512)
    options = replace(options, kv_gib=8 / 1024)
    served = {}
    for ranks in (1, 2):
        engines.log.clear()
        measured(replace(options, tensor_parallel=ranks))
        served[ranks] = engines.log[0][1]
    assert served == {1: 8, 2: 16}
    with pytest.raises(ConfigError, match="tensor_parallel=3 does not divide the 2 KV heads"):
        list(bench.measure(replace(OPTIONS, tensor_parallel=3)))


def test_what_is_preempted_is_swapped_by_ours_alone_and_neither_has_a_prefix_cache(
    engines, monkeypatch
):
    names = ("swapped_in", "swap_dearer", "swap_refused", "swap_token_seconds")
    counted = STATS | dict.fromkeys((*names, "compute_token_seconds"), 0.5) | {"swapped_out": 3}
    monkeypatch.setattr(sys.modules[__name__], "STATS", counted)
    found = measured(replace(OPTIONS, workload=("short",), swap_gib=0.5))
    assert only(found, ["swapped out"]).value == 3
    stock, ours = engines.made["stock"], engines.made["ours"]
    assert "kv_transfer_config" not in stock
    assert ours["kv_transfer_config"]["kv_connector"] == "PyvattnSwapConnector"
    assert ours["additional_config"]["pyvattn"]["swap_memory"] == 1 << 29
    assert not stock["enable_prefix_caching"]
    assert not ours["enable_prefix_caching"]


def test_late_binding_is_asked_of_ours_alone(engines):
    measured(replace(OPTIONS, workload=("short",), late_binding=True))
    assert engines.made["ours"]["additional_config"]["pyvattn"]["late_binding"] is True
    assert "additional_config" not in engines.made["stock"]


def test_a_mask_is_given_to_both_each_by_its_own_flex_attention(engines, monkeypatch):
    # The kernel is registered below, and for this test alone.
    monkeypatch.setattr(registry, "_KERNELS", dict(registry._KERNELS))
    found = measured(
        replace(OPTIONS, workload=("prefill",), flex_mask=True, device="cuda", rounds=1)
    )
    stock, ours = engines.made["stock"], engines.made["ours"]
    assert (stock["attention_backend"], stock["masked"]) == ("FLEX_ATTENTION", True)
    assert (ours["attention_backend"], ours["masked"]) == ("CUSTOM", False)
    kernel = ours["additional_config"]["pyvattn"]["kernel"]
    assert kernel_name(kernel) == KERNEL.name
    assert stock["enforce_eager"] is ours["enforce_eager"] is True
    ratio = only(found, ["ours / stock", "prompt"])
    assert (ratio.at_least, ratio.ok) == (1.22, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ours_kernel": "sdpa"}, "ours_kernel='sdpa' with flex_mask"),
        ({"kv_dtype": "fp8"}, "kv_dtype='fp8' with flex_mask"),
        ({"device": "cpu"}, "flex_mask needs --device cuda"),
    ],
)
def test_what_a_mask_decides_cannot_be_asked_otherwise(given, message):
    options = replace(OPTIONS, **{"flex_mask": True, "device": "cuda", **given})
    with pytest.raises(ConfigError, match=message):
        measured(options)


def test_long_prompts_come_again_from_the_prefix_cache(engines):
    found = measured(replace(OPTIONS, workload=("prefill",)))
    stock = [entry[1:] for entry in engines.log if entry[0] == "stock" and entry[1]]
    assert stock[:2] == [(4, 1, True), (4, 64, False)]
    assert only(found, ["ours / stock", "whole run"]).value == pytest.approx(0.8)
    assert only(found, ["ours / stock", "prompt"]).value == pytest.approx(1.25)


def test_no_more_long_requests_are_made_than_kv_memory_holds():
    # 1 KiB a token: 10 MiB hold 10,485 tokens.
    sized = bench._sized(replace(OPTIONS, long_tokens=4000, decode_tokens=9000))
    assert (sized.long_requests, sized.decode_requests) == (2, 1)
    with pytest.raises(ConfigError, match="holds fewer than 4096 tokens"):
        bench._sized(replace(OPTIONS, kv_gib=0.001))


def test_a_workload_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="workload shrt: use short, prefill, decode, trace"):
        measured(replace(OPTIONS, workload=("shrt",)))


def trace_file(tmp_path, rows):
    path = tmp_path / "lengths.csv"
    lines = ["num_prefill_tokens,num_decode_tokens", *(f"{p},{d}" for p, d in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_trace_is_served_all_at_once_each_request_as_long_as_it_says(engines, tmp_path):
    path = trace_file(tmp_path, [(5, 3), (9, 1), (7, 2), (8, 8)])
    found = measured(replace(OPTIONS, workload=("trace",), trace=path, trace_requests=3))
    served = [entry[1:] for entry in engines.log if entry[1]]
    assert served == [(3, [3, 1, 2], True)] * 6
    assert engines.arrivals == {"stock": None, "ours": None}
    assert engines.made["ours"]["max_model_len"] >= 10
    output = only(found, ["ours / stock", "output"])
    assert "3 requests of lengths.csv, all at once" in output.name
    assert output.value == pytest.approx(1.25)
    assert only(found, ["ours, ", "output"]).value == pytest.approx(6 / 0.8)
    assert not [name for name in found if "time to first token" in name]


def test_a_trace_at_a_rate_says_latencies_and_who_keeps_up(engines, tmp_path):
    path = trace_file(tmp_path, [(5, 3), (9, 1), (7, 2)])
    found = measured(replace(OPTIONS, workload=("trace",), trace=path, rate=1.0))
    at = engines.arrivals["stock"]
    assert at == engines.arrivals["ours"] == sorted(at)
    assert only(found, ["ours / stock", "time to first token, p99"]).value == pytest.approx(0.8)
    assert only(found, ["ours, ", "time per output token, p50"]).value == pytest.approx(0.08)
    # First tokens come after 0.08 s and the last request after seconds, however long answers are.
    share = only(found, ["ours, ", "first tokens came"])
    assert share.value == pytest.approx(at[-1] / (at[-1] + 0.08))
    assert share.note == "keeps up"
    slow = measured(replace(OPTIONS, workload=("trace",), trace=path, rate=1000.0))
    assert only(slow, ["ours, ", "first tokens came"]).note == "falls behind"


def test_a_made_up_trace_says_so(engines):
    found = measured(replace(OPTIONS, workload=("trace",), trace_requests=3))
    assert all("SYNTHETIC" in name for name in found if "requests of" in name)


class ArrivingEngine:
    """vLLM's ``LLMEngine``, of which the request that came last is done first."""

    def __init__(self):
        self.running = []
        self.arrived = {}

    def add_request(self, request_id, prompt, params, arrival_time):
        self.arrived[request_id] = arrival_time
        self.running.append((request_id, prompt))

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        request_id, prompt = self.running.pop()
        unfinished = SimpleNamespace(request_id="0", finished=False)
        done = SimpleNamespace(request_id=request_id, finished=True, prompt=prompt)
        return [unfinished, done]


def test_requests_that_arrive_are_answered_in_their_order():
    engine = ArrivingEngine()
    outputs = _as_they_arrive(engine, ["a", "b", "c"], [1, 2, 3], [0.0, 0.0, 0.01])
    assert [each.prompt for each in outputs] == ["a", "b", "c"]
    assert engine.arrived["1"] == engine.arrived["0"]
    assert engine.arrived["2"] - engine.arrived["0"] == pytest.approx(0.01, abs=1e-6)


class StepEngine(ArrivingEngine):
    """vLLM's ``LLMEngine``, which gives every request a token a step."""

    def step(self):
        outputs = []
        for request_id, prompt in self.running:
            prompt["made"] = [*prompt.get("made", []), len(prompt.get("made", [])) + 5]
            outputs.append(
                SimpleNamespace(
                    request_id=request_id,
                    finished=len(prompt["made"]) == 3,
                    outputs=[SimpleNamespace(token_ids=prompt["made"])],
                )
            )
        self.running = [each for each in self.running if len(each[1]["made"]) < 3]
        return outputs


def test_a_run_notes_when_each_token_was_known():
    asked = []
    load = Load([[1], [2]], [0.0, 0.02], 3)
    run = _run(StepEngine(), lambda **wanted: asked.append(wanted["max_tokens"]), load)
    assert asked == [3, 3]
    assert run.tokens == [[5, 6, 7]] * 2
    assert [len(times) for times in run.times] == [3, 3]
    assert all(times == sorted(times) for times in run.times)
    assert run.times[1][0] - run.began > 0.02


def _starts_another(pipe):
    os.setpgrp()
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    pipe.send(other.pid)
    other.wait()


def test_an_engine_that_has_to_be_killed_takes_along_what_it_started():
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_starts_another, args=(there,))
    process.start()
    other = here.recv()
    waits = os.pidfd_open(other)
    _kill_with_children(process)
    assert not process.is_alive()
    ended = select.select([waits], [], [], 10)[0]
    if not ended:
        os.kill(other, signal.SIGKILL)
    os.close(waits)
    assert ended


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_that_cannot_start_says_why(capfd):
    assert "vllm" not in sys.modules
    engine = Engine("stock", "tiny", 0, {})
    with pytest.raises(EngineFailed, match=r"stock: .*No module named 'vllm'"):
        engine.wait()
    engine.close()
    capfd.readouterr()
