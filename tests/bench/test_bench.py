# SPDX-License-Identifier: Apache-2.0
"""The bench's parts: the baseline keeps its promises, ratios are paired, targets are judged."""

import sys

import pytest

from pyvattn import LengthError, OutOfMemory, SlotError
from pyvattn.bench import core, core_steps
from pyvattn.bench.block_table import BlockTable
from pyvattn.bench.report import Measure, Report
from pyvattn.bench.timing import interleave, ratios, summarise
from pyvattn.cli.app import run
from pyvattn.cli.exits import Exit


class TestBlockTable:
    def test_it_backs_every_token_with_blocks_of_16(self):
        table = BlockTable(10, max_tokens=100)
        table.acquire(1)
        table.acquire(2)
        table.step({1: 16, 2: 17})
        assert [len(table.tables[request]) for request in (1, 2)] == [1, 2]
        assert table.tokens_used == 33
        assert not set(table.tables[1]) & set(table.tables[2])
        table.release(2)
        assert (len(table.free), table.tokens_used) == (9, 16)

    @pytest.mark.parametrize(
        ("lengths", "error"),
        [({1: 33}, OutOfMemory), ({1: 16, 9: 1}, SlotError), ({1: 101}, LengthError)],
    )
    def test_a_step_that_fails_changes_nothing(self, lengths, error):
        table = BlockTable(2, max_tokens=100)
        table.acquire(1)
        table.step({1: 5})
        with pytest.raises(error):
            table.step(lengths)
        assert (table.lengths, len(table.free), table.tokens_used) == ({1: 5}, 1, 5)


class TestTiming:
    def test_alternatives_take_turns(self):
        order = []
        clock = iter(range(0, 10**12, 10**7))
        seconds = interleave(
            {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
            rounds=3,
            clock=lambda: next(clock),
        )
        assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
        turns = "".join(order).replace("aa", "a").replace("bb", "b")
        assert "abab" in turns

    def test_ratios_are_of_the_same_round(self):
        found = ratios([10, 200, 3000], [1, 10, 100])
        assert (found.median, found.rounds) == (20, 3)

    def test_the_spread_is_the_quartiles(self):
        found = summarise([1, 2, 3, 4, 5])
        assert (found.low, found.median, found.high) == (2, 3, 4)


class TestReport:
    @pytest.mark.parametrize(
        ("bounds", "ok"),
        [({}, None), ({"at_least": 2}, True), ({"at_least": 3}, False), ({"at_most": 2}, True),
         ({"at_most": 1}, False), ({"at_least": 1, "at_most": 1.5}, False)],
    )  # fmt: skip
    def test_a_target_is_met_at_its_bound(self, bounds, ok):
        assert Measure("x", 2, "times", **bounds).ok is ok

    def test_one_missed_target_fails_the_report(self):
        fine, missed = Measure("a", 1, "", at_most=1), Measure("b", 2, "", at_most=1)
        assert Report("core", [fine, Measure("c", 9, "")]).ok
        assert not Report("core", [fine, missed]).ok

    def test_it_is_written_into_a_folder_or_a_file(self, tmp_path):
        report = Report("core", [Measure("a", 1, "")])
        assert report.write(tmp_path / "new") == tmp_path / "new" / "core.json"
        assert report.write(tmp_path / "h200" / "core-64k.json").read_text() != ""
        assert sorted(p.name for p in tmp_path.rglob("*.json")) == ["core-64k.json", "core.json"]

    def test_a_place_that_cannot_be_written_is_refused_before_the_bench(
        self, tmp_path, monkeypatch, capsys
    ):
        (tmp_path / "file").touch()
        out = str(tmp_path / "file" / "x.json")
        monkeypatch.setattr(sys, "argv", ["pyvattn", "bench", "core", "--out", out])
        monkeypatch.setattr(core, "measure", lambda options: pytest.fail("it ran"))
        with pytest.raises(SystemExit) as stop:
            run()
        assert stop.value.code == Exit.BAD_INPUT
        assert out.removesuffix("/x.json") in capsys.readouterr().err


class TestCore:
    def test_growth_is_one_call_for_an_extent_and_nothing_is_mapped_twice(self):
        found = {measure.name: measure for measure in core._growth()}
        fresh = [measure for name, measure in found.items() if "fresh" in name]
        assert len(fresh) == 2
        assert all(measure.ok for measure in fresh)
        assert found["bytes mapped twice in a churn"].ok

    def test_the_books_are_small(self):
        for measure in core._bookkeeping():
            assert measure.ok is not False, measure

    def test_books_of_large_steps_are_kept_by_the_run(self):
        seconds, entries, run = core_steps._grow_by_one_block()
        assert seconds > 0
        assert (entries, run) == (1, 2)

    def test_requests_that_come_and_go_are_timed_one_by_one(self):
        released, acquired = core_steps._come_and_go(8)
        assert len(released) == len(acquired) == core_steps._CALLS
        assert len(core_steps._reclaim(128)) == 99

    def test_steady_steps_map_nothing_in_any_alternative(self):
        steady = core._Steady(8)
        with steady.cache as cache:
            calls = steady.alternatives()
            calls["step"]()
            before = cache.stats()
            for each in calls.values():
                each()
            assert cache.stats().map_calls == before.map_calls
            assert cache.stats().bytes_used == steady.table.tokens_used * cache.spec.token_bytes
