# SPDX-License-Identifier: Apache-2.0
"""From what vLLM decided to a :class:`RowMemory` and the tensors of its layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from pyvattn import _native
from pyvattn.dtypes import ITEMSIZE
from pyvattn.geometry import check_page_size
from pyvattn.integrations.vllm.connectors import has_home_view
from pyvattn.integrations.vllm.home_memory import HomeRowMemory
from pyvattn.integrations.vllm.late_memory import LateRowMemory
from pyvattn.integrations.vllm.layout import choose_paging, read_shape
from pyvattn.integrations.vllm.lease import offer_memory
from pyvattn.integrations.vllm.memory import RowMemory, Sizes
from pyvattn.integrations.vllm.options import Options
from pyvattn.integrations.vllm.shared_memory import SharedRowMemory
from pyvattn.integrations.vllm.waits import Event, Waits
from pyvattn.resolve import choose_driver
from pyvattn.shared import SharedMemory
from pyvattn.units import format_page_size, format_size

__all__ = ["MakeDriver", "build_memory", "layer_tensors", "timing_event"]

# Of a driver's name, a page size and a device.
MakeDriver = Callable[[str, int, int], _native.Driver]

_log = logging.getLogger("vllm.pyvattn")


def build_memory(
    runner: Any,
    specs: Sequence[Any],
    blocks: int,
    make_driver: MakeDriver,
    lease: SharedMemory | None,
) -> RowMemory:
    """Open a driver, take the memory, where no ``lease`` is to be asked, and map the null row.

    ``runner`` is vLLM's model runner, ``specs`` those of its groups of layers, which have blocks
    of the same shape. A block belongs to one group at a time, and holds as many layers as the
    largest has. Raises what :func:`choose_paging` and :class:`RowMemory` raise, with the ``lease``
    closed.
    """
    with ExitStack() as undo:
        if lease is not None:
            undo.callback(lease.close)
        memory = _open_memory(runner, specs, blocks, make_driver, lease)
        undo.pop_all()
    if runner.device.type == "cuda":
        memory.waits = Waits(timing_event)
    if isinstance(memory, SharedRowMemory):
        offer_memory(runner.vllm_config, memory)
    _log_choice(memory, len(specs))
    return memory


def _open_memory(
    runner: Any,
    specs: Sequence[Any],
    blocks: int,
    make_driver: MakeDriver,
    lease: SharedMemory | None,
) -> RowMemory:
    options = Options.of(runner.vllm_config.additional_config)
    ordinal = runner.device.index or 0
    name = choose_driver(options.driver, runner.device.type == "cuda", ordinal)
    sizes = _sizes(runner, specs, blocks, options)
    if options.page_size == "auto":
        page_sizes = _native.driver_capabilities(name, ordinal).page_sizes
    else:
        page_sizes = [check_page_size(options.page_size)]
    token_bytes = 2 * sizes.heads * sizes.head_size * ITEMSIZE[sizes.dtype]
    at_home = has_home_view(runner.vllm_config)
    paging = choose_paging(
        page_sizes, sizes.layers, token_bytes, sizes.block_size, in_parts=not at_home
    )
    driver = make_driver(name, paging.page_size, ordinal)
    background = options.map_in_background
    if lease is not None:
        return SharedRowMemory(sizes, paging, driver, background=background, lease=lease)
    make = RowMemory
    if at_home:
        make = HomeRowMemory
    elif options.late_binding:
        make = LateRowMemory
    return make(sizes, paging, driver, background=background)


def timing_event() -> Event:
    """Return an event of the current device's, which times what is launched."""
    import torch

    return torch.cuda.Event(enable_timing=True)


def layer_tensors(runner: Any, specs: Sequence[Any], memory: RowMemory) -> dict[str, Any]:
    """Return a tensor of virtual blocks for each layer, shaped as its backend wants it.

    Layers of several groups have the same bytes of a block, which is one group's at a time.
    """
    tensors: dict[str, Any] = {}
    for spec, groups in zip(specs, runner.attn_groups, strict=True):
        # Layers that draft may have heads of queries of their own, which vLLM keeps apart.
        names = [name for group in groups for name in group.layer_names]
        tensors |= _group_tensors(runner, groups[0].backend, names, spec, memory)
    return tensors


def _group_tensors(
    runner: Any, backend: Any, names: list[str], spec: Any, memory: RowMemory
) -> dict[str, Any]:
    import torch

    if _has_rows(backend):
        return _row_tensors(names, spec, memory)
    shape = read_shape(backend, spec, runner.vllm_config.cache_config)
    # What finds blocks by vLLM's ids takes each layer of one to be as vLLM has it.
    at_home = isinstance(memory, HomeRowMemory)
    by_token = not at_home and shape.takes_tokens_apart(backend.get_name())
    _log.info(
        "pyvattn: %s sees each layer of a block as %s; %s",
        backend.get_name(),
        shape.shape,
        "tokens of a row have one stride" if by_token else "blocks are as vLLM has them",
    )
    geometry = memory.pool.geometry
    layers = geometry.layers_per_arena
    arenas = [memory.arena(index).view(spec.dtype) for index in range(geometry.arenas)]
    tensors = {}
    for index, name in enumerate(names):
        one, strides, offset = shape.view(index % layers, layers, by_token)
        sizes = list(one)
        sizes[shape.block_dim] = geometry.slots * memory.positions
        tensors[name] = torch.as_strided(arenas[index // layers], sizes, strides, offset)
    return tensors


def _has_rows(backend: Any) -> bool:
    """Return whether layers are attended to as rows, by kernels that have no table of vLLM's."""
    return bool(backend.get_name() == "CUSTOM")


def _row_tensors(names: list[str], spec: Any, memory: RowMemory) -> dict[str, Any]:
    """Return ``[rows, tokens, 2, kv_heads, head_dim]`` for each layer: K and V lie apart."""
    import torch

    geometry = memory.pool.geometry
    layers = geometry.layers_per_arena
    tokens = memory.positions * spec.block_size
    shape = (geometry.slots, tokens, 2, spec.num_kv_heads, spec.head_size)
    heads = spec.num_kv_heads * spec.head_size
    token = layers * 2 * heads
    strides = (tokens * token, token, heads, spec.head_size, 1)
    _log.info("pyvattn: layers are rows of %s, whose tokens have one stride", shape[1:])
    arenas = [memory.arena(index).view(spec.dtype) for index in range(geometry.arenas)]
    return {
        name: torch.as_strided(arenas[i // layers], shape, strides, i % layers * 2 * heads)
        for i, name in enumerate(names)
    }


def _sizes(runner: Any, specs: Sequence[Any], blocks: int, options: Options) -> Sizes:
    import torch

    config, spec = runner.vllm_config, specs[0]
    backends = [group.backend for groups in runner.attn_groups for group in groups]
    # What the elements mean is the backend's business; fp8 may come as uint8.
    bytes_each = torch.empty((), dtype=spec.dtype).element_size()
    dtype = {1: "float8_e4m3fn", 2: "bfloat16", 4: "float32"}[bytes_each]
    return Sizes(
        layers=max(map(len, _layer_names(runner))),
        heads=spec.num_kv_heads,
        head_size=spec.head_size,
        dtype=dtype,
        block_size=spec.block_size,
        blocks=blocks,
        rows=options.row_count(config.scheduler_config.max_num_seqs, len(specs)),
        max_blocks=-(-runner.max_model_len // spec.block_size),
        reads_by_table=not any(map(_has_rows, backends)),
    )


def _layer_names(runner: Any) -> list[list[str]]:
    """Return the names of each group's layers."""
    return [[name for each in groups for name in each.layer_names] for groups in runner.attn_groups]


def _log_choice(memory: RowMemory, groups: int) -> None:
    geometry, sizes = memory.pool.geometry, memory.sizes
    _log.info(
        "pyvattn: driver %s, %d blocks of %d tokens (%s) in %d arenas of %d layers, pages of %s; "
        "%d rows of %d blocks, groups of layers: %d, %s of addresses",
        memory.pool.driver,
        sizes.blocks,
        sizes.block_size,
        format_size(sizes.blocks * geometry.arenas * geometry.page_size),
        geometry.arenas,
        geometry.layers_per_arena,
        format_page_size(geometry.page_size),
        geometry.slots,
        memory.positions,
        groups,
        format_size(geometry.arena_bytes * geometry.arenas),
    )
    if isinstance(memory, HomeRowMemory):
        _log.info(
            "pyvattn: each block is at the place of vLLM's id as well, by %d map calls",
            memory.stats()["home_map_calls"],
        )
