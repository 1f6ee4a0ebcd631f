# SPDX-License-Identifier: Apache-2.0
"""The count behind ``bench plan``, against every step of every request one by one."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from pyvattn import CacheSpec
from pyvattn.bench import plan as bench
from pyvattn.cli.app import cli
from pyvattn.planner import Workload, default_costs
from pyvattn.planner.candidate import evaluate
from pyvattn.traces import Request, Trace

REQUESTS = (Request(0.0, 40, 700), Request(0.0, 1, 3), Request(0.0, 300, 400))
TRACE = Trace("three requests", REQUESTS, synthetic=True, arrivals="at once")
SPEC = CacheSpec(2, 3, 64, max_slots=4, max_tokens=1000, guard_tokens=200)


def steps():
    """Every length that a request has, from its prompt's to its last token's."""
    for request in TRACE.requests:
        yield from range(request.prompt, request.prompt + request.generated + 1)


@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("driver", ["host", "stock-uvm"])
def test_waste_and_calls_are_those_of_going_through_every_step(layout, driver):
    costs, load = default_costs(driver), Workload(batch=5)
    geometry = SPEC.geometry(layout, "64K")
    candidate = evaluate(SPEC, geometry, costs, load)
    found = bench.count(candidate, SPEC, costs, load, bench.lengths_of(TRACE))
    guard = SPEC.guard_tokens if costs.private_guard else 0
    wastes, crossings = [], 0
    for length in steps():
        pages = geometry.pages(length + guard)
        wastes.append(geometry.arenas * pages * geometry.page_size - length * SPEC.token_bytes)
        crossings += geometry.pages(length + guard) > geometry.pages(length - 1 + guard)
    mean = sum(wastes) / len(wastes)
    assert found.waste_tokens == pytest.approx(mean / SPEC.token_bytes)
    assert found.calls_per_step == pytest.approx(5 * geometry.arenas * crossings / len(wastes))
    used = sum(steps()) / len(wastes) * SPEC.token_bytes
    assert found.waste_share == pytest.approx(mean / (mean + used))


def test_a_guard_that_costs_memory_is_counted():
    load, geometry = Workload(batch=5), SPEC.geometry("layer", "64K")
    with_guard, without = (
        bench.count(
            evaluate(SPEC, geometry, costs, load), SPEC, costs, load, bench.lengths_of(TRACE)
        )
        for costs in (default_costs("stock-uvm"), default_costs("patched"))
    )
    assert with_guard.waste_tokens > without.waste_tokens


def test_the_command_holds_every_choice_to_the_best_and_says_what_it_is(tmp_path):
    path = tmp_path / "plan.json"
    result = CliRunner().invoke(cli, ["bench", "plan", "--out", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    measures = {m["name"]: m for m in json.loads(path.read_text())["measures"]}
    judged = [m for name, m in measures.items() if "above the best" in name]
    assert len(judged) == 5 * (1 + 2 + 2)
    assert all(m["value"] >= 0 and m["at_most"] == 1.0 for m in judged)
    waste = measures["Llama-3-8B; cumem; guard 0: waste of a live request"]
    assert waste["note"] == "layout token by 16, 2M pages"
