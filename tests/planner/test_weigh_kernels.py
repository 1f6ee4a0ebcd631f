# SPDX-License-Identifier: Apache-2.0
"""A kernel's time against the memory that its guard takes: what wins, and what is left out."""

from __future__ import annotations

import json
import sys

import pytest

from pyvattn import CacheSpec, ConfigError
from pyvattn.cli.app import run
from pyvattn.planner import KernelChoice, Workload, kernel_choice, plan, weigh_kernels
from pyvattn.planner.groups import guarded_for

ROWS, TABLE = "flash-attn-3", "flash-attn-3-paged"
LLAMA3_8B = CacheSpec(32, 8, 128, "bfloat16", max_slots=256, max_tokens=40000)


@pytest.fixture
def by_table(monkeypatch):
    """Have the table take so many times as long in decode."""

    def measured(decode):
        kernels = {
            ROWS: {"decode": 1.0, "prefill": 1.0},
            TABLE: {"decode": decode, "prefill": 1.02},
        }
        monkeypatch.setattr(kernel_choice, "_TIMES", {"over": ROWS, "kernels": kernels})

    return measured


def weighed(driver="cumem", spec=LLAMA3_8B, **load):
    workload = Workload(batch=256, **load) if load else None
    return weigh_kernels(spec, driver=driver, workload=workload)


@pytest.mark.parametrize(
    ("decode", "prompt", "best"),
    [(1.05, 1155, TABLE), (1.20, 1155, ROWS), (1.05, 32000, ROWS), (1.20, 200, TABLE)],
)
@pytest.mark.parametrize("driver", ["cumem", "stock-uvm"])
def test_short_requests_want_memory_and_long_ones_time(by_table, driver, decode, prompt, best):
    by_table(decode)
    found = weighed(driver, prompt=prompt, generated=100)
    assert [each.name for each in found] == sorted((ROWS, TABLE), key=lambda name: name != best)
    assert found[0].loss < found[1].loss


def test_each_is_planned_with_its_own_guard_and_charged_its_own_time(by_table):
    by_table(1.05)
    found = {each.name: each for each in weighed()}
    for name, guard in ((ROWS, 192), (TABLE, 0)):
        each = found[name]
        alone = plan(guarded_for(LLAMA3_8B, name), driver="cumem")
        assert each.guard_tokens == guard
        assert [made.choice for made in each.plans] == [alone.choice]
        assert each.loss == pytest.approx(alone.choice.loss + each.decode - 1)
        held = alone.workload.context * LLAMA3_8B.token_bytes + alone.choice.waste_mean_bytes
        assert each.request_bytes == pytest.approx(held)
    more = found[ROWS].request_bytes - found[TABLE].request_bytes
    assert more == 192 * LLAMA3_8B.token_bytes


def test_a_tie_goes_to_the_faster(by_table):
    by_table(1.05)
    loss = {each.name: each.loss for each in weighed()}
    by_table(1.05 + loss[ROWS] - loss[TABLE] - 0.0001)
    assert weighed()[0].name == ROWS


@pytest.mark.parametrize(
    ("spec", "driver"),
    [
        (LLAMA3_8B, "patched"),  # backs guards with zeros that requests share
        (LLAMA3_8B, "host"),
        (CacheSpec.mla(layers=2, latent_dim=512, rope_dim=64, max_tokens=4096), "cumem"),
        (CacheSpec(2, 8, 320, "bfloat16", max_tokens=4096), "cumem"),
        (CacheSpec(2, 8, 128, "float32", max_tokens=4096), "cumem"),
    ],
)
def test_nothing_is_weighed_where_no_guard_costs_anything_or_no_kernel_fits(spec, driver):
    assert weighed(driver, spec) == ()


def test_unknown_drivers_are_refused_as_plan_does():
    with pytest.raises(ConfigError, match="'nvme'"):
        weigh_kernels(LLAMA3_8B, driver="nvme")


def test_the_shipped_times_are_of_kernels_that_there_are():
    found = weighed()
    assert all(isinstance(each, KernelChoice) for each in found)
    assert {each.name for each in found} == {ROWS, TABLE}
    assert "docs/results/" in kernel_choice.TIMES_SOURCE


@pytest.fixture
def pyvattn_plan(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PYVATTN_CALIBRATION", "off")
    shape = ["--layers", "32", "--kv-heads", "8", "--head-dim", "128", "--max-tokens", "40000"]

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["pyvattn", "plan", *shape, *options])
        with pytest.raises(SystemExit) as done:
            run()
        assert done.value.code == 0
        return capsys.readouterr().out

    return call


def test_plan_recommends_one_and_shows_what_each_costs(by_table, pyvattn_plan):
    by_table(1.05)
    said = " ".join(pyvattn_plan("--driver", "cumem", "--memory", "40GiB").split())
    assert f"{TABLE} is recommended" in said
    found = json.loads(pyvattn_plan("--driver", "cumem", "--memory", "40GiB", "--json"))
    table, rows = found["kernels"]["cumem"]
    assert (table["kernel"], rows["kernel"]) == (TABLE, ROWS)
    assert table["fits"] > rows["fits"] > 0
    for each in (table, rows):
        assert f"{each['kernel']} │ {each['guard_tokens']} │ {each['fits']} │" in said
    assert json.loads(pyvattn_plan("--driver", "patched", "--json"))["kernels"] == {}
