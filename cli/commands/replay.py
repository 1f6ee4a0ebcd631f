# SPDX-License-Identifier: Apache-2.0
"""``pyvattn replay``: a trace of requests through the allocator, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from pyvattn.cli.commands.replay_calls import show_calls
from pyvattn.cli.model_options import model_options, read_model
from pyvattn.cli.output import console, json_option, print_json, progress_console, table
from pyvattn.cli.sizes import size_option
from pyvattn.errors import ConfigError
from pyvattn.geometry import LAYOUTS, check_layout, check_page_size
from pyvattn.machine import describe_machine, describe_run
from pyvattn.replay import Result
from pyvattn.replay.compare import Case, cases, check_fits, run
from pyvattn.replay.scheduler import DEFAULT_STEP_SECONDS
from pyvattn.spec import CacheSpec
from pyvattn.traces import DEFAULT_RATE, SYNTHETIC_REQUESTS, Trace, read_trace, synthetic_trace
from pyvattn.units import format_size

_STEP_MS = DEFAULT_STEP_SECONDS * 1e3
_MODEL = CacheSpec(32, 8, 128)
_MODEL_NAME = "the shape of Llama-3-8B"
_SHAPE = ("layers", "kv_heads", "head_dim", "latent_dim", "rope_dim", "dtype", "max_tokens",
          "max_slots", "tensor_parallel")  # fmt: skip


@click.command()
@click.argument("trace", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--config", type=click.Path(), help=f"A Hugging Face config.json [{_MODEL_NAME}].")
@model_options
@size_option("--memory", default="8GiB", help="Memory limit [8GiB].")
@click.option("--page-sizes", default="64K,2M", help="Comma-separated page sizes [64K,2M].")
@click.option("--layouts", default=",".join(LAYOUTS), help="Comma-separated [layer,token].")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    help="Compare with static and 16-token paged allocation.",
)
@click.option(
    "--step-ms",
    type=float,
    default=DEFAULT_STEP_SECONDS * 1e3,
    show_default=True,
    help="Simulated time of a step.",
)
@click.option(
    "--saturate", is_flag=True, help="Ignore arrival times, so that requests always wait."
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Use only so many requests, from the start."
)
@click.option(
    "--rate",
    type=float,
    default=DEFAULT_RATE,
    help=f"Arrivals per second of a synthetic trace [{DEFAULT_RATE:g}].",
)
@click.option("--seed", type=int, default=0, help="Seed of a synthetic trace [0].")
@click.option("--plot", type=click.Path(dir_okay=False), help="Write a PNG of memory over time.")
@click.option(
    "--calls",
    type=click.Path(exists=True, dir_okay=False),
    help="Make the driver calls of this file again, in place of all the above.",
)
@click.option("--on", "driver", default="host", help="The driver that makes them [host].")
@json_option
def command(
    trace: str | None,
    config: str | None,
    as_json: bool,
    plot: str | None,
    calls: str | None,
    driver: str,
    **options: Any,
) -> None:
    """Run the requests of TRACE through the allocator, and through static and paged allocation.

    TRACE is a CSV file of the Azure LLM inference traces, of BurstGPT or Vidur, or
    one of lengths alone, or JSON lines as in the Mooncake traces. Where it is left
    out, a SYNTHETIC trace is made up, and every output says so. No memory is
    touched: the real allocator counts what it would map.

    With --calls, memory is: what pyvattn.calls recorded is done once more, call by call.
    """
    if calls is not None:
        if trace is not None:
            raise click.UsageError("TRACE holds requests and --calls driver calls: name one")
        show_calls(calls, driver, as_json)
        return
    requests = _read(trace, options)
    # Allocators are compared that keep every token.
    spec = read_model(config, default=_MODEL, **{name: options[name] for name in _SHAPE}).flat()
    if config is None and options["max_tokens"] is None:
        spec = replace(spec, max_tokens=requests.longest)
    memory = options["memory"]
    check_fits(spec, memory)
    found = _run(
        list(cases(spec, memory, *_matrix(options), baselines=options["baselines"])),
        requests,
        spec,
        None if options["saturate"] else options["step_ms"] / 1e3,
    )
    if plot is not None:
        from pyvattn.plots import plot_replay

        plot_replay(f"{requests.label}, limit {format_size(memory)}", found, plot)
    if as_json:
        print_json(_as_dict(requests, spec, options, found))
    else:
        _print(requests, spec, memory, found)


def _read(path: str | None, options: dict[str, Any]) -> Trace:
    made_up = {"rate": options["rate"], "seed": options["seed"]}
    if path is not None:
        return read_trace(path, limit=options["limit"], **made_up)
    return synthetic_trace(options["limit"] or SYNTHETIC_REQUESTS, **made_up)


def _matrix(options: dict[str, Any]) -> tuple[list[int], list[str]]:
    sizes = [check_page_size(text) for text in options["page_sizes"].split(",")]
    layouts = [check_layout(text.strip()) for text in options["layouts"].split(",")]
    if options["step_ms"] <= 0:
        raise ConfigError(f"--step-ms {options['step_ms']}: use a positive time")
    return sizes, layouts


def _run(
    todo: Sequence[Case], trace: Trace, spec: CacheSpec, step_seconds: float | None
) -> list[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    found = []
    with Progress(*columns, console=progress_console(), transient=True) as bar:
        for case in todo:
            show = partial(_show, bar, bar.add_task(case.label, total=len(trace.requests)))
            found.append(run(case, trace, spec, step_seconds, show))
    return found


def _show(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def _print(trace: Trace, spec: CacheSpec, memory: int, found: Sequence[Result]) -> None:
    out = console()
    out.print(
        Text(
            f"{len(trace.requests)} requests of {trace.label}, arrivals {trace.arrivals}; "
            f"{format_size(spec.token_bytes)} a token, requests of up to {spec.max_tokens} "
            f"tokens, {spec.max_slots} slots, limit {format_size(memory)}."
        )
    )
    columns = ("allocation", "held GiB", "peak", "mapped", "live", "peak", "waste MB", "tokens",
               "calls", "/request", "preempted", "wait s")  # fmt: skip
    title = "Memory of live requests (mean, peak), peak mapped, live requests, mean waste of each"
    out.print(table(title, columns, [_row(result) for result in found]))
    if refused := max(result.refused for result in found):
        out.print(Text(f"Up to {refused} requests were refused: they are too long."))


def _row(result: Result) -> tuple[str, ...]:
    per_request = result.map_calls / max(result.requests, 1)
    return (
        result.label,
        f"{result.mean_held / 2**30:.2f}",
        f"{result.peak_held / 2**30:.2f}",
        f"{result.peak_mapped / 2**30:.2f}",
        f"{result.mean_live:.1f}",
        str(result.peak_live),
        _short(result.waste_bytes / 1e6),
        _short(result.waste_tokens),
        str(result.map_calls),
        _short(per_request),
        str(result.preempted),
        f"{result.mean_wait:.2f}",
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _as_dict(
    trace: Trace, spec: CacheSpec, options: dict[str, Any], found: Sequence[Result]
) -> dict[str, Any]:
    return {
        **describe_run(),
        "machine": describe_machine(),
        "trace": {
            "name": trace.label,
            "synthetic": trace.synthetic,
            "arrivals": trace.arrivals,
            "requests": len(trace.requests),
        },
        "spec": asdict(spec),
        "memory": options["memory"],
        "step_ms": None if options["saturate"] else options["step_ms"],
        # The samples are for the plot: thousands, and nothing that the sums do not say.
        "results": [
            {name: value for name, value in asdict(result).items() if name != "samples"}
            for result in found
        ],
    }
