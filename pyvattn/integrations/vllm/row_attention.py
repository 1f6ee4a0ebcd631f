# SPDX-License-Identifier: Apache-2.0
"""vLLM's batches, attended to by kernels that have no block table.

A layer's cache is one tensor, ``[rows, tokens, 2, kv_heads, head_dim]``: K of all heads of a
token, then V of all. vLLM's batches are ragged: their queries go in packed, in one call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module

import torch
from torch import Tensor

from pyvattn.attention import Kernel, kernel_infos, register
from pyvattn.attention.indices import KnownIndices, to_host
from pyvattn.attention.problem import UNLIMITED, Problem
from pyvattn.attention.registry import choose
from pyvattn.attention.windows import starts_of
from pyvattn.errors import ConfigError, UnsupportedError
from pyvattn.text import shown

__all__ = ["Batch", "attend", "kernel_name", "refuse_unsupported", "write"]


@dataclass(frozen=True)
class Batch:
    """The requests of a step: how many queries each has, its row, and its tokens.

    ``lengths`` count the queries' own tokens; both are on the device of the queries.
    """

    counts: KnownIndices
    rows: Tensor | KnownIndices
    lengths: Tensor | KnownIndices
    causal: bool = True

    @cached_property
    def on_host(self) -> Batch:
        """The same, which the host knows as well: waited for once, by the first layer of a step."""
        rows, lengths = (
            KnownIndices.of(to_host(each), each) if isinstance(each, Tensor) else each
            for each in (self.rows, self.lengths)
        )
        return replace(self, rows=rows, lengths=lengths)


def write(cache: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> None:
    """Put new tokens' K and V, ``[tokens, kv_heads, head_dim]``, at their places in the rows.

    A slot is a token's place, counted from the first of row 0; what stands at -1 is padding.
    """
    places = cache.view(-1, *cache.shape[2:])
    count = slots.shape[0]
    # Chosen by a mask they would have to be counted first, and the host would wait for that in
    # each layer: so padding writes what is there already, into vLLM's null block.
    kept = (slots >= 0)[:, None, None]
    slots = slots.clamp(min=0)
    for index, new in enumerate((key, value)):
        places[slots, index] = torch.where(kept, new[:count], places[slots, index])


def attend(
    out: Tensor,
    query: Tensor,
    cache: Tensor,
    batch: Batch,
    scale: float,
    kernel: str,
    window: int | None = None,
) -> None:
    """Write each query's result, ``[tokens, heads, head_dim]``, into ``out``.

    A query sees the last ``window`` tokens up to its own. In front of the first query's window
    nothing is read: vLLM's null block is there, or blocks that others have by now.

    Raises what :func:`pyvattn.attention.attend` raises for the kernel.
    """
    total = sum(batch.counts)
    if total == 0:
        return
    problem = _problem(query[:total], cache, batch, scale, window)
    # Nothing is mapped behind a row's blocks: kernels that read there are refused.
    chosen = choose(kernel, problem, guard_tokens=0)
    if not chosen.capturable:
        problem = _problem(query[:total], cache, batch.on_host, scale, window)
    out[:total] = chosen.attend(problem)


def _problem(
    query: Tensor, cache: Tensor, batch: Batch, scale: float, window: int | None
) -> Problem:
    starts, seen = None, (UNLIMITED, UNLIMITED)
    if window is not None:
        starts = starts_of(batch.lengths, batch.counts, window, None)
        seen = (window - 1, UNLIMITED)
    return Problem(
        query,
        cache[:, :, 0],
        cache[:, :, 1],
        batch.rows,
        batch.lengths,
        batch.causal,
        scale,
        window_size=seen,
        starts=starts,
        query_counts=batch.counts,
    )


def refuse_unsupported(asked: dict[str, bool]) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` naming everything that is asked."""
    names = [name for name, is_asked in asked.items() if is_asked]
    if names:
        raise UnsupportedError(
            f"--attention-backend CUSTOM of pyvattn does not do {', '.join(names)}: leave it out, "
            "vLLM's own backends do and read rows as well"
        )


def kernel_name(wanted: str) -> str:
    """Return the name of a kernel, after registering it where it is ``module:attribute``.

    Raises :class:`~pyvattn.errors.ConfigError` for what cannot be found or is no kernel.
    """
    module, colon, attribute = wanted.partition(":")
    if not colon:
        known = ["auto", *(info.name for info in kernel_infos())]
        if wanted not in known:
            raise ConfigError(f"kernel {wanted!r}: use one of {', '.join(known)}, or MODULE:KERNEL")
        return wanted
    try:
        kernel = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"kernel {wanted!r}: {error}; name a module that can be imported") from (
            error
        )
    if not isinstance(kernel, Kernel):
        raise ConfigError(
            f"kernel {wanted!r} is {shown(kernel)}: use a kernel, such as "
            "pyvattn.attention.FlexKernel('mine', mask_mod=mask)"
        )
    if kernel.name not in [info.name for info in kernel_infos()]:
        register(kernel)
    return kernel.name
