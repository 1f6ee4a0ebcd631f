# SPDX-License-Identifier: Apache-2.0
"""``pyvattn bench``: one command for each bench of the registry."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from pyvattn.bench.registry import BENCHES
from pyvattn.cli.filled import filler
from pyvattn.cli.lazy import LazyCommand, LazyGroup
from pyvattn.cli.output import json_option
from pyvattn.cli.run_bench import run_bench


def _options_of(ctx: click.Context) -> Callable[..., Any]:
    """Return the Options of the bench whose command it is."""
    bench: Callable[..., Any] = import_module(BENCHES[str(ctx.command.name)].module).Options
    return bench


_option = filler(_options_of)
_OUT = click.option(
    "--out", type=click.Path(), help="Folder for BENCH.json, or a file that ends in .json."
)


@click.group(
    cls=LazyGroup,
    lazy={
        name: LazyCommand("pyvattn.cli.commands.bench", bench.help, name)
        for name, bench in BENCHES.items()
    },
)
def command() -> None:
    """Measure, compare in the same process, and keep the results as JSON."""


@click.command()
@_option("--trace", type=click.Path(exists=True, dir_okay=False), help="File with a request trace.")
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each timing.")
@_OUT
@json_option
@click.pass_context
def core(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Measure the core: bookkeeping against a plain block table, growth, replay, its own memory.

    Without --trace the replay runs a SYNTHETIC trace. The exit code is 1 if a
    target is missed.
    """
    run_bench(ctx, "core", options, out, as_json)


def _driver_options(page_size: str = "Page size, such as 64K.") -> Callable[[Any], Any]:
    """Return the options of benches that run on a driver of the user's choice."""
    options = (
        _option("--driver", help="Name of the driver."),
        _option("--page-size", help=page_size),
        _option("--device", type=int, help="Ordinal of the CUDA device."),
        _OUT,
        json_option,
        click.pass_context,
    )

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command()
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each call.")
@_option(
    "--peer-access", is_flag=True, help="Let the GPUs that can reach it access what is mapped."
)
@_driver_options("Page size, such as 64K [the smallest].")
def api(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Time reserve, allocate, map, unmap, free and release by extent size.

    For cumem, CUDA's own calls are timed apart as well (needs cuda-python).
    """
    run_bench(ctx, "api", options, out, as_json)


@click.command()
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each size.")
@_option("--total", type=click.IntRange(min=2), help="MiB mapped in a round.")
@_option("--against", help="A second driver, measured in turn with the first.")
@_driver_options("Page size, such as 64K [the smallest].")
def bandwidth(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Time how fast memory becomes usable, by extent size.

    With --against the exit code is 1 if a target is missed.
    """
    run_bench(ctx, "bandwidth", options, out, as_json)


@click.command()
@_option("--kernel", multiple=True, help="Kernel to measure; may be repeated [all available].")
@_option("--layout", help="Layout: layer, token or auto.")
@_option("--layers-per-arena", type=int, help="Layers side by side, for layout token [all].")
@_option("--layers", type=click.IntRange(min=1), help="Layers of the cache.")
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each kernel.")
@_option("--seconds", type=float, help="Longest time for one kernel, in seconds.")
@_driver_options()
def attention(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Time kernels on mapped memory against cudaMalloc and against paged attention.

    Needs a GPU. The exit code is 1 if a target is missed.
    """
    run_bench(ctx, "attention", options, out, as_json)


@click.command()
@_option("--layout", help="Layout: layer, token or auto.")
@_option("--layers", type=click.IntRange(min=1), help="Layers of the caches.")
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each way.")
@_option("--seconds", type=float, help="Longest time for one shape, in seconds.")
@_driver_options()
def float8(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Time FlashAttention-3 over float8 K and V against bfloat16 and against paged float8.

    Needs a Hopper GPU. The exit code is 1 if a target is missed.
    """
    run_bench(ctx, "float8", options, out, as_json)


@click.command()
@_option("--batch", type=click.IntRange(min=1), help="Requests that decode.")
@_option("--steps", type=click.IntRange(min=100), help="Decode steps.")
@_option("--layout", help="Layout: layer, token or auto.")
@_option("--layers", type=click.IntRange(min=1), help="Layers of the model.")
@_driver_options()
def overlap(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Time decode steps with everything preallocated, mapped when needed, and prefetched.

    Needs a GPU with room for the weights of an 8B model and three caches. The
    exit code is 1 if a target is missed.
    """
    run_bench(ctx, "overlap", options, out, as_json)


@click.command()
@_option("--tokens", type=click.IntRange(min=16), help="Tokens of the request.")
@_option("--layers", type=click.IntRange(min=1), help="Layers of the model.")
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each copy.")
@_option("--layout", help="Layout: layer, token or auto.")
@_option("--against", type=click.Choice(("vllm",)), help="vLLM's own CPU offload, measured too.")
@_driver_options()
def offload(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Time KVCache.offload and restore against one copy, and against blocks of 16 tokens.

    With a GPU's driver it needs a GPU with three times the request's memory, and pinned memory
    for it twice, with --against six times; --driver host runs anywhere. The exit code is 1 if a
    target is missed.
    """
    run_bench(ctx, "offload", options, out, as_json)


@click.command()
@_option("--tokens", type=click.IntRange(min=16), help="Tokens of the request.")
@_option("--layers", type=click.IntRange(min=1), help="Layers of the model.")
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each copy.")
@_option("--layout", help="Layout: layer, token or auto.")
@_option("--to-device", type=int, help="Ordinal of the CUDA device that it goes to.")
@_option("--peer-access", is_flag=True, help="Let the first GPU write into the other's cache.")
@_driver_options()
def transfer(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Time a request's way from one cache to another, as rows and as blocks of 16 tokens.

    With a GPU's driver it needs two GPUs with three times the request's memory on each; --driver
    host runs anywhere. The exit code is 1 if a target is missed.
    """
    run_bench(ctx, "transfer", options, out, as_json)


@click.command()
@_option("--model", help="Model: llama-3-8b or tiny.")
@_option("--layers", type=click.IntRange(min=0), help="Layers of the model [all].")
@_option("--requests", type=click.IntRange(min=1), help="Number of requests.")
@_option("--prompt-tokens", type=click.IntRange(min=1), help="Prompt tokens of each request.")
@_option("--new-tokens", type=click.IntRange(min=2), help="New tokens of each request.")
@_option("--rate", type=click.FloatRange(min=0), help="Arrivals per second [all at once].")
@_option("--seed", type=click.IntRange(min=0), help="Seed of prompts and arrivals.")
@_option(
    "--against",
    type=click.Choice(("library", "sdpa", "vllm")),
    help="The library's own choice of attention, its SDPA, or vLLM.",
)
@_option("--compile-level", type=click.IntRange(0, 3), help="default_compile_level of the library.")
@_option("--ours-compile", is_flag=True, help="Have torch.compile fuse our model's layers.")
@_option("--ours-fuse", is_flag=True, help="Have our model multiply by Q, K and V at once.")
@_option("--rounds", type=click.IntRange(min=1), help="Rounds after the first.")
@_option(
    "--seconds",
    type=click.FloatRange(min=0),
    help="Start no round that would end later, and no step of --steps [no limit].",
)
@_option("--device", help="Device: cuda:0 and so on, or cpu.")
@_option("--driver", help="Name of the driver.")
@_option("--page-size", help="Page size, such as 64K.")
@_option("--layout", help="Layout: layer, token or auto.")
@_option("--kv-dtype", help="Dtype of our KV cache, such as float8_e4m3fn [the model's].")
@_option("--guard-for", help="Kernel whose tail guard our cache has [all kernels' of here].")
@_option("--profile", is_flag=True, help="Take our steps apart instead: shares, and their limits.")
@_option("--steps", type=click.IntRange(min=0), help="Run so many of our steps: which are slow.")
@_OUT
@json_option
@click.pass_context
def transformers(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Serve requests through our engine and through transformers' own continuous batching.

    The baseline is what transformers chooses on this machine: FlashAttention-3 or -2 where it
    is installed, with its decode path, CUDA graphs and asynchronous batches; --against vllm takes
    vLLM as it comes instead, on the same GPU. With --rate the requests arrive one by one
    (Poisson). The weights are random and seeded. On the CPU use --model tiny and few tokens. The
    exit code is 1 if the tokens differ in float32, or a target is missed.
    """
    run_bench(ctx, "transformers", options, out, as_json)


@click.command()
@_option("--model", help="Model: llama-3-8b or tiny.")
@_option("--layers", type=click.IntRange(min=0), help="Layers of the model [all].")
@_option(
    "--workload",
    multiple=True,
    type=click.Choice(("short", "prefill", "decode", "trace")),
    help="What to serve; may be repeated [all].",
)
@_option("--requests", type=click.IntRange(min=1), help="Short requests.")
@_option("--new-tokens", type=click.IntRange(min=2), help="New tokens of each short request.")
@_option("--long-requests", type=click.IntRange(min=1), help="Long prompts to prefill.")
@_option("--long-tokens", type=click.IntRange(min=1), help="Tokens of each.")
@_option("--decode-requests", type=click.IntRange(min=1), help="Requests that decode.")
@_option("--decode-tokens", type=click.IntRange(min=1), help="Prompt tokens of each.")
@_option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False),
    help="File with a request trace [made-up requests].",
)
@_option("--trace-requests", type=click.IntRange(min=2), help="Requests of it.")
@_option("--rate", type=click.FloatRange(min=0), help="Of those that arrive, a second [at once].")
@_option("--rounds", type=click.IntRange(min=1), help="Rounds after the first.")
@_option(
    "--seconds",
    type=click.FloatRange(min=0),
    help="Start no round that would end later [no limit].",
)
@_option("--kv-gib", type=click.FloatRange(min=0), help="KV memory of each engine [what fits].")
@_option("--kv-dtype", help="vLLM's --kv-cache-dtype.")
@_option("--quantization", help="vLLM's --quantization, such as fp8 [none].")
@_option("--backend", help="Attention backend of both.")
@_option("--ours-backend", help="Attention backend of ours [that of both].")
@_option("--ours-kernel", help="Kernel of CUSTOM, such as flash-attn-3-paged [auto].")
@_option("--late-binding", is_flag=True, help="Ours gives fresh blocks the pages of their row.")
@_option(
    "--flex-mask",
    is_flag=True,
    help="Both by FlexAttention with a mask that no paged kernel has, eagerly.",
)
@_option("--block-size", type=click.IntRange(min=0), help="Block size of ours [16 a GPU].")
@_option("--stock-block-size", type=click.IntRange(min=0), help="Block size of stock [its own].")
@_option("--tensor-parallel", type=click.IntRange(min=1), help="GPUs of each engine [1].")
@_option(
    "--swap-gib", type=click.FloatRange(min=0), help="Host memory for what ours preempts [none]."
)
@_option("--driver", help="Name of the driver.")
@_option("--eager", is_flag=True, help="Neither compile nor use CUDA graphs.")
@_option("--device", type=click.Choice(("cuda", "cpu")), help="Device.")
@_OUT
@json_option
@click.pass_context
def vllm(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Serve requests with vLLM, over pyvattn's rows and stock, by turns.

    Needs vLLM, and a GPU with room for two engines. Weights are random, the same for both.
    On the CPU use --model tiny --block-size 128 and few tokens. The exit code is 1 if a target
    is missed.
    """
    run_bench(ctx, "vllm", options, out, as_json)


@click.command()
@_option("--model", help="Model: llama-3-8b or tiny.")
@_option("--layers", type=click.IntRange(min=0), help="Layers of the model [all].")
@_option("--engines", type=click.IntRange(min=1), help="Engines of ours.")
@_option("--requests", type=click.IntRange(min=1), help="Requests.")
@_option("--prompt-tokens", type=click.IntRange(min=16), help="Most tokens of a prompt.")
@_option("--new-tokens", type=click.IntRange(min=2), help="New tokens of each.")
@_option("--rounds", type=click.IntRange(min=1), help="Rounds after the first.")
@_option(
    "--seconds",
    type=click.FloatRange(min=0),
    help="Start no round that would end later [no limit].",
)
@_option("--kv-gib", type=click.FloatRange(min=0), help="KV memory that they share.")
@_option("--asks", type=click.IntRange(min=0), help="Times that a neighbour asks for memory.")
@_option("--ask-mib", type=click.IntRange(min=1), help="MiB that it asks for.")
@_option("--backend", help="Attention backend of all.")
@_option("--block-size", type=click.IntRange(min=1), help="Block size of ours.")
@_option("--driver", help="Name of the driver.")
@_option("--eager", is_flag=True, help="Neither compile nor use CUDA graphs.")
@_option("--device", type=click.Choice(("cuda", "cpu")), help="Device.")
@_OUT
@json_option
@click.pass_context
def elastic(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Serve requests with vLLM engines that share KV memory, and with stock, by turns.

    Needs vLLM, and a GPU with room for the weights of all. Weights are random, the same for
    all. On the CPU use --model tiny --block-size 128, few tokens and little memory. The exit code
    is 1 if a target is missed.
    """
    run_bench(ctx, "elastic", options, out, as_json)


@click.command()
@_option("--trace", type=click.Path(exists=True, dir_okay=False), help="File with a request trace.")
@_option("--memory", help="Memory for the cache.")
@_option("--rounds", type=click.IntRange(min=3), help="Places in the trace.")
@_option(
    "--driver", help="Driver whose pages and tail guard count [64K and 2M pages, cumem's guard]."
)
@_option("--page-size", help="Page size, such as 64K [all of the driver's].")
@_OUT
@json_option
@click.pass_context
def capacity(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Count the requests of a trace that fit, against static and paged allocation.

    Without --trace the requests are SYNTHETIC. The exit code is 1 if a target
    is missed.
    """
    run_bench(ctx, "capacity", options, out, as_json)


@click.command()
@_option("--trace", type=click.Path(exists=True, dir_okay=False), help="File with a request trace.")
@_option("--memory", help="Memory for the cache.")
@_option("--rounds", type=click.IntRange(min=3), help="Places in the trace.")
@_option("--page-size", help="Page size, such as 64K.")
@_OUT
@json_option
@click.pass_context
def hybrid(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Count what models with windows hold, and the requests that fit, against vLLM's blocks.

    Without --trace the requests are SYNTHETIC. The exit code is 1 if a target
    is missed.
    """
    run_bench(ctx, "hybrid", options, out, as_json)


@click.command()
@_option("--page-size", help="Page size, such as 64K, or auto.")
@_option("--rounds", type=click.IntRange(min=3), help="Forks that are timed.")
@_option("--device", help="Device to time forks and prompts on, cuda:0 say [none: count].")
@_option("--driver", help="Name of the driver there.")
@_option("--model", help="Shape of the model that runs the prompts.")
@_option("--layers", type=click.IntRange(min=0), help="Layers of it [all].")
@_option("--requests", type=click.IntRange(min=2), help="Prompts that begin alike.")
@_option("--common-tokens", type=click.IntRange(min=1), help="Tokens that they have in common.")
@_OUT
@json_option
@click.pass_context
def sharing(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Count what forks and prompts with one beginning hold, and time a fork's bookkeeping.

    With --device it times forks there, and prompts that share their beginning against prompts
    that do not. The exit code is 1 if a target is missed.
    """
    run_bench(ctx, "sharing", options, out, as_json)


@click.command()
@_option("--kernel", multiple=True, help="Kernel to measure; may be repeated [all with windows].")
@_option("--layers", type=click.IntRange(min=1), help="Layers with a window.")
@_option("--rows", type=click.IntRange(min=1), help="Rows that decode.")
@_option("--tokens", type=click.IntRange(min=1), help="Tokens of each row.")
@_option("--rounds", type=click.IntRange(min=3), help="Rounds of each kernel.")
@_option("--seconds", type=float, help="Longest time for one kernel, in seconds.")
@_option("--driver", help="Name of the driver.")
@_option("--page-size", help="Page size, such as 64K, or auto.")
@_option("--device", help="cuda:0 or another, or cpu.")
@_OUT
@json_option
@click.pass_context
def rings(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Time window layers of Gemma 3 and gpt-oss through rings and on plain rows.

    The exit code is 1 if a target is missed.
    """
    run_bench(ctx, "rings", options, out, as_json)


@click.command()
@_option("--trace", type=click.Path(exists=True, dir_okay=False), help="File with a request trace.")
@_option("--batch", type=click.IntRange(min=1), help="Requests in a step.")
@_OUT
@json_option
@click.pass_context
def plan(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Compare the planner's choice for five models with what every candidate costs on a trace.

    Without --trace the requests are SYNTHETIC. The exit code is 1 if a choice loses a
    percentage point more than the best candidate.
    """
    run_bench(ctx, "plan", options, out, as_json)


@click.command()
@_option("--trace", type=click.Path(exists=True, dir_okay=False), help="File with a request trace.")
@_option("--live", type=click.IntRange(min=1), help="Requests live at a time.")
@_option("--requests", type=click.IntRange(min=4), help="Requests in all.")
@_option("--read-ahead", type=click.IntRange(min=0), help="Tokens to map ahead.")
@click.option("--out", type=click.Path(file_okay=False), help="Folder for reuse.json.")
@json_option
@click.pass_context
def reuse(ctx: click.Context, /, out: str | None, as_json: bool, **options: Any) -> None:
    """Count driver calls for each admitted request: in a fresh cache, and once warm.

    The load is constant, memory is tight to ample. Without --trace the
    requests are SYNTHETIC. The exit code is 1 if a target is missed.
    """
    run_bench(ctx, "reuse", options, out, as_json)
