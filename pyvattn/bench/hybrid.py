# SPDX-License-Identifier: Apache-2.0
"""``bench hybrid``: what models whose layers differ hold, and how many requests fit.

Arithmetic alone, so it runs anywhere: whole pages of rows whose windows were trimmed, against
the blocks of vLLM. Requests of the trace are admitted in order, each at its full length, until
one does not fit; the count is taken from many places of the trace. What a prompt holds while
it is computed is left out there on both sides, and counted by itself for windows in rings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike

from pyvattn.arguments import Settings, check_name, check_type
from pyvattn.bench.block_groups import BlockLayout
from pyvattn.bench.report import Measure
from pyvattn.bench.timing import ratios, summarise
from pyvattn.errors import ConfigError
from pyvattn.geometry import Geometry, check_page_size
from pyvattn.layer_group import LayerGroup
from pyvattn.planner import guarded_for, held_bytes
from pyvattn.samples import BLOCK_TOKENS
from pyvattn.spec import CacheSpec
from pyvattn.state_group import StateGroup
from pyvattn.text import shown
from pyvattn.traces import Trace, read_trace, synthetic_trace
from pyvattn.units import parse_size

_Tensor = tuple[tuple[int, ...], str]

Held = Callable[[int], int]
"""The bytes that a request of so many tokens holds."""

# A question, a chat, a book.
_LENGTHS = (12, 2_000, 100_000)
# A long prompt, and the chunks that vLLM computes it in on a GPU with much memory.
_PROMPT, _CHUNK = 20_000, 8_192
_BLOCKS = "vLLM's blocks"
_RINGS = "rows with rings"
# Of vLLM's peak, for the model that was asked for.
_MOST_AT_PEAK = {"Gemma-3-27B": 0.45}
# FlashAttention-3 by a table of the rows, which reads no further than them, and without one.
_KERNELS = {"rows": "flash-attn-3-paged", "rows guarded for flash-attn-3": "flash-attn-3"}
_SIDE_BY_SIDE = "rows with layers side by side"
# What kernels must find of a layer in each entry of the page table, which may be one small page.
_ENTRY_TOKENS = 16


def _mixed(
    windowed: int, shape: tuple[int, int], window: int, full: int, other: tuple[int, int]
) -> list[LayerGroup]:
    """Return groups of layers with a window and of those without, each of a shape."""
    return [
        LayerGroup(range(windowed), *shape, window=window),
        LayerGroup(range(windowed, windowed + full), *other),
    ]


def _stateful(full: int, shape: tuple[int, int], states: int, **tensors: _Tensor) -> CacheSpec:
    """Return the spec of layers that keep every token beside others that keep a state."""
    state = StateGroup(range(states), tensors)
    return CacheSpec(full, *shape, max_slots=1, states=[state])


#: By their published configs. Which of the layers it is changes nothing here.
_WINDOWED: Mapping[str, CacheSpec] = {
    name: CacheSpec(groups=groups, max_slots=1)
    for name, groups in {
        "gpt-oss-20b": _mixed(12, (8, 64), 128, 12, (8, 64)),
        "gpt-oss-120b": _mixed(18, (8, 64), 128, 18, (8, 64)),
        "Gemma-3-27B": _mixed(52, (16, 128), 1024, 10, (16, 128)),
        "Gemma-4-31B": _mixed(50, (16, 256), 1024, 10, (4, 512)),
        "Gemma-4-26B-A4B": _mixed(25, (8, 256), 1024, 5, (2, 512)),
    }.items()
}
#: Their states have the sizes and dtypes that vLLM gives them.
_STATEFUL: Mapping[str, CacheSpec] = {
    "Qwen3-Next-80B-A3B": _stateful(
        12, (2, 256), 36, conv=((3, 8192), "bfloat16"), ssm=((32, 128, 128), "bfloat16")
    ),
    "Qwen3.5-27B": _stateful(
        16, (4, 256), 48, conv=((3, 10240), "bfloat16"), ssm=((48, 128, 128), "float32")
    ),
    "Nemotron-3-Nano-30B-A3B": _stateful(
        6, (2, 128), 23, conv=((3, 6144), "bfloat16"), ssm=((64, 64, 128), "float32")
    ),
    "Nemotron-3-Super-120B-A12B": _stateful(
        8, (2, 128), 40, conv=((3, 10240), "bfloat16"), ssm=((128, 64, 128), "float32")
    ),
}
MODELS: Mapping[str, CacheSpec] = {**_WINDOWED, **_STATEFUL}
# What requests over those of vLLM are to be, where it is more than as many.
_TARGET = dict.fromkeys(_STATEFUL, 1.1)
# vLLM's kernel for gated delta nets on Hopper keeps states every so many tokens.
_STATE_TOKENS = {"Qwen3-Next-80B-A3B": 64, "Qwen3.5-27B": 64}


def block_layout(model: str) -> BlockLayout:
    """Return how vLLM divides one of :data:`MODELS`."""
    check_name("model", model, such_as="Gemma-3-27B")
    if model not in MODELS:
        raise ConfigError(f"model={shown(model)}: use one of {', '.join(MODELS)}")
    return BlockLayout.of(MODELS[model], _STATE_TOKENS.get(model, BLOCK_TOKENS))


@dataclass(frozen=True)
class Options(Settings, least={"rounds": 3}):
    """``trace`` is a CSV file, or None for a synthetic trace; ``rounds`` places in it."""

    trace: str | PathLike[str] | None = None
    memory: str = "40GiB"
    rounds: int = 31
    page_size: str = "64K"


def measure(options: Options) -> Iterator[Measure]:
    """Yield every measure."""
    check_type("options", options, Options)
    trace = read_trace(options.trace) if options.trace else synthetic_trace()
    memory = parse_size(options.memory, "memory")
    starts = random.Random(0).sample(range(len(trace.requests)), options.rounds)
    note = f"{trace.label}, {options.memory}, {options.page_size} pages"
    for model, spec in MODELS.items():
        allocations = {_BLOCKS: block_layout(model).bytes_at, **_rows(spec, options.page_size)}
        if memory < 2 * max(held(trace.longest) for held in allocations.values()):
            raise ConfigError(
                f"memory={options.memory!r} holds less than two of the longest requests"
            )
        yield from _held(model, spec, allocations, note)
        if any(spec.windows):
            yield from _peaks(model, spec, options.page_size)
        counts = {
            name: [_fitting(held, memory, trace, start) for start in starts]
            for name, held in allocations.items()
        }
        for name, values in counts.items():
            yield Measure.of(f"{model}, {name}", summarise(values), "requests", note=note)
        for name in list(counts)[1:]:
            yield Measure.of(
                f"{model}, {name} / {_BLOCKS}",
                ratios(counts[name], counts[_BLOCKS]),
                "times",
                at_least=_TARGET.get(model, 1.0),
                note=note,
            )


def _rows(spec: CacheSpec, page_size: str) -> dict[str, Held]:
    """Return what rows hold by themselves, and with a guard of private memory in each group.

    And, with as many layers of a token side by side as kernels allow, where the last pages of a
    row waste least.
    """
    found: dict[str, Held] = {}
    for name, kernel in _KERNELS.items():
        guarded = guarded_for(spec, kernel)
        found[name] = partial(_pages, guarded, guarded.geometries("layer", page_size))
    alone = guarded_for(spec, _KERNELS["rows"])
    close = [_side_by_side(part, page_size) for part in alone.parts]
    return {**found, _SIDE_BY_SIDE: partial(_pages, alone, close)}


def _side_by_side(part: CacheSpec, page_size: str) -> Geometry:
    most = check_page_size(page_size) // (_ENTRY_TOKENS * part.token_bytes_per_layer)
    divisors = [each for each in range(1, part.layers + 1) if part.layers % each == 0]
    layers = max((each for each in divisors if each <= most), default=0)
    if not layers:
        return part.geometry("layer", page_size)
    return part.geometry("token", page_size, layers)


def _pages(spec: CacheSpec, geometries: Sequence[Geometry], tokens: int) -> int:
    return held_bytes(spec, geometries, tokens, private_guard=True)


def _held(
    model: str, spec: CacheSpec, allocations: Mapping[str, Held], note: str
) -> Iterator[Measure]:
    for tokens in _LENGTHS:
        for name, held in {**allocations, "tokens alone": spec.bytes_at}.items():
            yield Measure(
                f"{model}, {tokens:,} tokens, {name}", held(tokens) / 2**20, "MiB", note=note
            )


def _peaks(model: str, spec: CacheSpec, page_size: str) -> Iterator[Measure]:
    """Yield the most that a long prompt holds while it is computed.

    With rings of two windows that is what it holds in the end: a chunk is appended and attended
    to in pieces.
    """
    alone = guarded_for(spec, _KERNELS["rows"])
    ringed = replace(
        alone, groups=[replace(each, ring=each.window is not None) for each in alone.groups]
    )
    blocks = BlockLayout.of(spec).peak_bytes(_PROMPT, _CHUNK)
    rings = _pages(ringed, ringed.geometries("layer", page_size), _PROMPT)
    note = f"{_PROMPT:,} tokens in chunks of {_CHUNK:,}, {page_size} pages"
    for name, held in ((_BLOCKS, blocks), (_RINGS, rings)):
        yield Measure(f"{model}, peak, {name}", held / 2**20, "MiB", note=note)
    yield Measure(
        f"{model}, peak, {_RINGS} / {_BLOCKS}",
        rings / blocks,
        "times",
        at_most=_MOST_AT_PEAK.get(model),
        note=note,
    )


def _fitting(held: Held, memory: int, trace: Trace, start: int) -> float:
    """Return how many requests fit, round the trace once from ``start``."""
    left = memory
    requests = trace.requests[start:] + trace.requests[:start]
    for count, request in enumerate(requests):
        left -= held(request.prompt + request.generated)
        if left < 0:
            return float(count)
    return float(len(requests))
