# SPDX-License-Identifier: Apache-2.0
"""``bench elastic`` with engines that only say what they were asked, and a real ledger."""

from __future__ import annotations

import os
from dataclasses import replace
from threading import Event, Thread

import pytest

from pyvattn import SharedMemory
from pyvattn.bench import elastic as bench
from pyvattn.bench.report import Measure
from pyvattn.bench.vllm_engine import Served

MIB = 1 << 20
OPTIONS = bench.Options(
    model="tiny",
    device="cpu",
    requests=4,
    new_tokens=2,
    prompt_tokens=20,
    kv_gib=1 / 16,
    asks=20,
    ask_mib=2,
)
SECONDS = {"stock": 1.0, "engine 1": 0.8, "engine 2": 1.25}


class FakeEngine:
    """One of ours holds what it can get, and gives what it is asked for down to its guarantee."""

    log: list[tuple[str, int]]
    made: dict[str, dict]

    def __init__(self, name, model, layers, options, *, apart):
        self.name = name
        self.made[name] = options
        self._lease = None
        self._ends = Event()
        if name != "stock":
            given = options["additional_config"]["pyvattn"]
            self._lease = SharedMemory("cpu", name=name, guarantee=given["guarantee"])
            self._thread = Thread(target=self._give)
            self._thread.start()

    def wait(self):
        return "0.32.0"

    def serve(self, prompts, new_tokens):
        self.log.append((self.name, len(prompts)))
        if self._lease is not None:
            while self._lease.wait_for(2 * MIB, 0) and self._lease.take(2 * MIB):
                pass
        seconds = SECONDS[self.name]
        tokens = [[sum(ids) % 97] * new_tokens for ids in prompts]
        times = [seconds / 10] * len(prompts)
        return Served(seconds, prompts, tokens, times, times, 0)

    def margins(self, prompts):
        return [0.5] * len(prompts)

    def close(self):
        self._ends.set()
        if self._lease is not None:
            self._thread.join()
            self._lease.return_bytes(self._lease.held)
            self._lease.close()

    def _give(self):
        while not self._ends.is_set():
            if self._lease.wait_asked(20):
                over = self._lease.held - self._lease.limit
                if over > 0:
                    self._lease.return_bytes(over)


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    monkeypatch.setattr(FakeEngine, "log", [], raising=False)
    monkeypatch.setattr(FakeEngine, "made", {}, raising=False)
    monkeypatch.setattr(bench, "Engine", FakeEngine)
    return FakeEngine


def measured(options):
    found = [item for item in bench.measure(options) if isinstance(item, Measure)]
    return {item.name: item for item in found}


def only(found, *words):
    (name,) = [name for name in found if all(word in name for word in words)]
    return found[name]


def test_each_is_compared_to_stock_by_turns_and_the_first_round_is_left_out(engines):
    found = measured(OPTIONS)
    first = ["stock", "engine 1", "engine 2"]
    assert [name for name, _ in engines.log] == [*first, *first[::-1], *first]
    for name, ratio, ok in (("engine 1", 1.25, True), ("engine 2", 0.8, False)):
        output = only(found, "ours / stock", name, "output")
        assert (output.value, output.ok) == (pytest.approx(ratio), ok)
        tpot = only(found, "ours / stock", name, "p95 TPOT")
        assert (tpot.value, tpot.ok) == (pytest.approx(1 / ratio), ok)


def test_ours_share_what_stock_has_alone(engines):
    measured(replace(OPTIONS, rounds=1))
    memory = engines.made["stock"]["kv_cache_memory_bytes"]
    assert memory == 64 * MIB
    given = [engines.made[f"engine {i}"]["additional_config"]["pyvattn"] for i in (1, 2)]
    assert [(each["memory"], each["guarantee"]) for each in given] == [("shared", 8 * MIB)] * 2


def test_idle_engines_give_down_to_their_guarantees_and_are_timed(engines):
    found = measured(replace(OPTIONS, asks=100))
    # All but the guarantees, and what was free.
    assert 20 <= only(found, "asks").value <= 48 / 2
    assert 0 < only(found, "p50").value <= only(found, "p99").value
    for name in ("engine 1", "engine 2"):
        kept = only(found, name, "leased / guaranteed")
        assert (kept.value, kept.ok) == (pytest.approx(1.0), True)


def test_it_leaves_the_ledger_of_others_alone(engines, tmp_path, monkeypatch):
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(tmp_path))
    measured(replace(OPTIONS, rounds=1))
    assert os.environ["PYVATTN_RUNTIME_DIR"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("device", "apart"), [("cuda", True), ("cpu", False)])
def test_engines_on_a_gpu_have_a_loop_that_gives_while_idle(monkeypatch, device, apart):
    asked = []
    monkeypatch.setattr(bench, "Engine", lambda *_, **options: asked.append(options))
    list(bench._start(replace(OPTIONS, device=device)))
    assert asked == [{"apart": apart}] * 3
