# SPDX-License-Identifier: Apache-2.0
"""``pyvattn plan``: the planner's choice for a model, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pyvattn.cli.held import fits, held_table, requests_held
from pyvattn.cli.kernel_choices import choice_as_dict, choice_line, choice_table
from pyvattn.cli.model_options import model_options, read_model
from pyvattn.cli.output import console, json_option, print_json, table
from pyvattn.cli.sizes import size_option
from pyvattn.configs import remarks, supported
from pyvattn.kernels import KERNELS
from pyvattn.machine import identify
from pyvattn.planner import (
    DEFAULT_COSTS,
    GROWTH_PAGES,
    Candidate,
    Plan,
    Workload,
    default_costs,
    guarded_for,
    plan_parts,
    typical_workload,
    use_calibration,
    weigh_kernels,
    window_choices,
)
from pyvattn.planner.workload import TYPICAL_BATCH, TYPICAL_GENERATED, TYPICAL_PROMPT
from pyvattn.spec import CacheSpec
from pyvattn.units import format_page_size, format_size

_GUARD = next(field.default for field in fields(CacheSpec) if field.name == "guard_tokens")


@click.command()
@click.argument("config", required=False, type=click.Path())
@model_options
@click.option(
    "--driver",
    type=click.Choice(["all", *DEFAULT_COSTS]),
    default="all",
    help="Driver to plan for; with one, every candidate is shown [all].",
)
@size_option("--page-size", auto=True, default="auto", help="Use this page size [auto].")
@click.option(
    "--layout",
    type=click.Choice(["auto", "layer", "token"]),
    default="auto",
    help="Use this layout [auto].",
)
@click.option(
    "--growth",
    "growth_pages",
    is_flag=True,
    help="Show every number of pages that rows may grow by, not only the least that hides mapping.",
)
@click.option("--guard", "guard_tokens", type=int, help=f"Tokens of tail guard [{_GUARD}].")
@click.option(
    "--kernel",
    type=click.Choice([kernel.name for kernel in KERNELS]),
    help="Plan with the tail guard that this attention kernel needs, in place of --guard.",
)
@click.option("--batch", type=int, help=f"Requests in a step [slots, up to {TYPICAL_BATCH}].")
@click.option(
    "--prompt",
    type=int,
    help=f"Tokens of a prompt [{TYPICAL_PROMPT}, as on average in the Azure trace].",
)
@click.option("--generated", type=int, help=f"Tokens that it generates [{TYPICAL_GENERATED}].")
@size_option("--weights", help="Bytes of weights that a step reads [0].")
@size_option("--memory", help="Say how many requests fit in this much memory.")
@click.option(
    "--calibration",
    type=click.Path(exists=True, dir_okay=False),
    help="What `pyvattn calibrate` wrote [PYVATTN_CALIBRATION, then the user's own].",
)
@json_option
def command(config: str | None, as_json: bool, **options: Any) -> None:
    """Choose the page size and layout for a model, and explain the choice.

    CONFIG is a Hugging Face config.json, or the folder it lies in. Nothing is
    opened, mapped or downloaded.
    """
    shape = ("layers", "kv_heads", "head_dim", "latent_dim", "rope_dim", "dtype", "max_tokens",
             "max_slots", "tensor_parallel", "guard_tokens")  # fmt: skip
    guard_tokens = options["guard_tokens"]
    spec = read_model(config, **{name: options.pop(name) for name in shape})
    spec = _for_kernel(spec, options.pop("kernel"), guard_tokens)
    memory, driver = options.pop("memory"), options.pop("driver")
    load = _workload(spec, config, options)
    drivers = list(DEFAULT_COSTS) if driver == "all" else [driver]
    if driver == "all" and options["page_size"] != "auto":
        # A page size by name leaves out the drivers that do not have it.
        drivers = [
            name for name in drivers if options["page_size"] in default_costs(name).page_sizes
        ]
    calibration = options.pop("calibration")
    ahead = GROWTH_PAGES if options.pop("growth_pages") else None
    here = identify()
    plans, kernels = [], {}
    for name in drivers or ["host"]:
        costs = use_calibration(name, here, calibration)
        how = {"driver": name, "workload": load, "costs": costs, "growth_pages": ahead, **options}
        plans.append(plan_parts(spec, **how))
        if weighed := weigh_kernels(spec, **how):
            kernels[name] = weighed
    notes = [] if config is None else [*remarks(config), supported(config)]
    requests = requests_held(spec, plans)
    if as_json:
        # One of several groups says nothing of how many requests fit.
        room = None if len(spec.parts) > 1 else memory
        made_plans = [
            {**_as_dict(made, room), "window": window and asdict(window)}
            for parts in plans
            for made, window in zip(parts, window_choices(spec, parts), strict=True)
        ]
        found = {"spec": asdict(spec), "remarks": notes, "plans": made_plans, "requests": requests}
        if memory is not None:
            together = {parts[0].costs.driver: fits(spec, parts, memory) for parts in plans}
            found["fits"] = together
        found["kernels"] = {
            name: [choice_as_dict(each, memory) for each in weighed]
            for name, weighed in kernels.items()
        }
        print_json(found)
        return
    out = console()
    for line in _model_lines(spec):
        out.print(Text(line))
    for note in notes:
        out.print(Text(note))
    out.print()
    for parts in plans:
        _print_plans(spec, parts, memory, whole=driver != "all")
        if shown := kernels.get(parts[0].costs.driver):
            out.print(Text(choice_line(shown)))
            if driver != "all":
                out.print(choice_table(shown, memory))
            out.print()
    if requests:
        out.print(held_table(requests))
    if driver == "all":
        out.print(Text("--driver NAME shows every candidate and why it was not taken."))


def _for_kernel(spec: CacheSpec, kernel: str | None, guard_tokens: int | None) -> CacheSpec:
    if kernel is None:
        return spec
    if guard_tokens is not None:
        raise click.UsageError("--kernel says what guard there is: leave --guard out.")
    return guarded_for(spec, kernel)


def _workload(spec: CacheSpec, config: str | None, options: dict[str, Any]) -> Workload:
    given = {
        name: value
        for name in ("batch", "prompt", "generated")
        if (value := options.pop(name)) is not None
    }
    weights = options.pop("weights") or _weights_beside(config)
    return replace(typical_workload(spec), weight_bytes=weights, **given)


def _weights_beside(config: str | None) -> int:
    """Return the size of the weights if their index lies beside the config, else 0."""
    if config is None:
        return 0
    folder = Path(config) if Path(config).is_dir() else Path(config).parent
    try:
        file = folder / "model.safetensors.index.json"
        index = json.loads(file.read_text(encoding="utf-8-sig"))
        return int(index["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _model_lines(spec: CacheSpec) -> list[str]:
    ends = f"up to {spec.max_slots} requests of {spec.max_tokens} tokens"
    states = [
        f"  {len(group.layers)} layers with a state of {format_size(group.layer_bytes)}: "
        f"{format_size(group.bytes)} a request"
        for group in spec.states
    ]
    if not spec.groups:
        return [f"{spec.layers} layers, {_shape(spec)}, {_sizes(spec)}; {ends}", *states]
    kept = ["every token" if w is None else f"the last {w} tokens" for w in spec.windows]
    return [
        f"{spec.layers} layers in groups, {_sizes(spec)}; {ends}",
        *[
            f"  {part.layers} layers, {_shape(part)}, keep {keep}: "
            f"{format_size(part.token_bytes)} a token"
            for part, keep in zip(spec.parts, kept, strict=True)
        ],
        *states,
        *([f"  {len(spec.shared)} layers read the K and V of others"] if spec.shared else []),
    ]


def _shape(spec: CacheSpec) -> str:
    if spec.kind == "mla":
        return f"latent vectors of {spec.latent_dim} + {spec.rope_dim}"
    if spec.v_head_dim != spec.head_dim:
        return f"{spec.kv_heads} KV heads of {spec.head_dim} in K and {spec.v_head_dim} in V"
    return f"{spec.kv_heads} KV heads of {spec.head_dim}"


def _sizes(spec: CacheSpec) -> str:
    return f"{spec.dtype}: {format_size(spec.token_bytes)} a token"


def _print_plans(spec: CacheSpec, parts: Sequence[Plan], memory: int | None, whole: bool) -> None:
    out = console()
    windows = window_choices(spec, parts)
    for number, (made, window) in enumerate(zip(parts, windows, strict=True), 1):
        if len(parts) > 1:
            out.print(Text(f"Group {number} of {len(parts)}, {made.spec.layers} layers:"))
        _print_plan(made, whole)
        if window is not None:
            out.print(Text(f"Window of {window.window} tokens: {window.reason}."))
    if memory is not None:
        fit = fits(spec, parts, memory)
        out.print(Text(f"{fit} such requests fit in {format_size(memory)}."))
    out.print()


def _print_plan(made: Plan, whole: bool) -> None:
    out = console()
    out.print(Text(made.summary))
    for warning in made.warnings:
        out.print(Text(f"Warning: {warning}", style="yellow"))
    if whole:
        out.print()
        out.print(_candidate_table(made))


def _candidate_table(made: Plan) -> Any:
    columns = ("layout", "page", "arenas", "tok/page", "tok/entry", "tokens", "waste",
               "kernels", "loss", "calls", "of step", "<verdict")  # fmt: skip
    return table(
        "Candidates, best first; tokens and share that a request wastes, calls of a step",
        columns,
        [_row(c, made) for c in made.candidates],
    )


def _row(candidate: Candidate, made: Plan) -> tuple[str, ...]:
    entry, loss = candidate.tokens_per_entry, candidate.kernel_loss
    return (
        candidate.layout_name,
        _pages(candidate),
        str(candidate.arenas),
        f"{candidate.tokens_per_page:.4g}",
        "" if entry is None else f"{entry:.4g}",
        f"{candidate.waste_mean_tokens:.4g}",
        f"{candidate.waste_share:.1%}",
        "" if loss is None else f"{loss:.0%}",
        "" if candidate.loss is None else f"{candidate.loss:.1%}",
        f"{candidate.calls_per_step:.3g}",
        f"{candidate.map_share:.1%}",
        _verdict(candidate, made),
    )


def _pages(candidate: Candidate) -> str:
    size = format_page_size(candidate.page_size)
    return size if candidate.growth_pages == 1 else f"{candidate.growth_pages} x {size}"


def _verdict(candidate: Candidate, made: Plan) -> str:
    if candidate is made.choice:
        return "chosen"
    if candidate.refused:
        return "TLB misses"
    return "" if candidate.hidden else "cannot hide"


def _fits(candidate: Candidate, made: Plan, memory: int) -> int:
    held = made.workload.context * made.spec.token_bytes + candidate.waste_mean_bytes
    return int(memory / held)


def _as_dict(made: Plan, memory: int | None) -> dict[str, Any]:
    def one(candidate: Candidate) -> dict[str, Any]:
        result = {
            **asdict(candidate),
            "hidden": candidate.hidden,
            "loss": candidate.loss,
        }
        return result if memory is None else {**result, "fits": _fits(candidate, made, memory)}

    return {
        "driver": made.costs.driver,
        "costs": asdict(made.costs),
        "workload": asdict(made.workload),
        "choice": one(made.choice),
        "candidates": [one(candidate) for candidate in made.candidates],
        "warnings": list(made.warnings),
        "explanation": made.explanation,
    }
