# SPDX-License-Identifier: Apache-2.0
"""What a kernel is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyvattn.attention.features import Feature
from pyvattn.attention.indices import Indices, check_indices, outside, to_device, to_host
from pyvattn.errors import ArgumentError, ConfigError, TensorError
from pyvattn.text import shown

if TYPE_CHECKING:
    from pyvattn.attention.kv_scales import LayerScales
    from pyvattn.attention.step import Step

# What torch's own attention takes, on every device.
TORCH_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What K and V are quantised to.
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

# A side of a window that has no end.
UNLIMITED = -1


@dataclass(frozen=True)
class Problem:
    """One layer's attention for a batch of slots.

    ``q`` is ``[batch, queries, q_heads, head_dim]`` or, packed, ``[total, q_heads,
    head_dim]`` with ``query_counts[i]`` queries of row ``i``, one row after the other;
    ``k`` and ``v`` are a layer's ``[slots, tokens, kv_heads, head_dim]`` with any strides
    but a contiguous last dimension. Heads of ``v`` may have another width, which is then
    that of the result. Row ``i`` attends to tokens ``starts[i]`` (default 0) to
    ``lengths[i] - 1`` of slot ``slots[i]``.

    Queries are right-aligned: the last one of a row stands at token ``lengths[i] - 1``.
    Where ``causal``, a row with fewer tokens than queries has queries before its first
    token; they see nothing, and their result is zero. Otherwise every query sees all
    tokens of its row. A row of no tokens is zero.

    A query at token ``p`` sees tokens ``p - left`` to ``p + right`` of ``window_size =
    (left, right)``, -1 for no limit. A score ``s`` becomes ``softcap * tanh(s /
    softcap)``, unless that is zero, and ``slope * |p - token|`` is taken off it, with
    ``alibi_slopes`` of ``[q_heads]`` or ``[batch, q_heads]``, float32.

    With ``in_ring`` rows are rings: token ``starts[i]`` of ``k`` and ``v`` is where what the row
    attends to begins in its ring, not how many tokens come before.

    With ``scales``, ``k`` and ``v`` are float8 and stand for their elements times those of
    their head, and ``q`` is of a wider dtype, which is the result's as well.

    ``page_bytes``: rows begin at a physical page of so many bytes, and where a token is backed
    its whole page is. ``None`` where nothing is known of that. ``step`` is what the layers of the
    forward pass share.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    slots: Indices
    lengths: Indices
    causal: bool
    scale: float
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED)
    softcap: float = 0.0
    starts: Indices | None = None
    alibi_slopes: Tensor | None = None
    query_counts: Indices | None = None
    scales: LayerScales | None = None
    page_bytes: int | None = None
    in_ring: bool = False
    step: Step | None = None

    @property
    def packed(self) -> bool:
        """Whether rows may have unequal numbers of queries."""
        return self.query_counts is not None

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the result: that of the queries, with heads as wide as those of V."""
        return (*self.q.shape[:-1], self.v.shape[-1])

    @property
    def features(self) -> frozenset[Feature]:
        """What a kernel must have to do this, the log-sum-exp aside."""
        asked = {
            Feature.WINDOW: self.window_size != (UNLIMITED, UNLIMITED),
            Feature.STARTS: self.starts is not None,
            Feature.SOFTCAP: self.softcap != 0,
            Feature.ALIBI: self.alibi_slopes is not None,
            Feature.PACKED: self.packed,
            Feature.QUANTISED: self.scales is not None,
            Feature.V_WIDTH: self.v.shape[-1] != self.k.shape[-1],
        }
        return frozenset(feature for feature, wanted in asked.items() if wanted)

    @property
    def bounds(self) -> tuple[int, int]:
        """How far a query sees to the left and to the right, causality included; -1: no limit."""
        left, right = self.window_size
        return left, 0 if self.causal else right

    @cached_property
    def host_slots(self) -> tuple[int, ...]:
        """The slots as ints; waits for the device where they are a tensor on one."""
        return to_host(self.slots)

    @cached_property
    def host_lengths(self) -> tuple[int, ...]:
        """The lengths as ints; waits for the device where they are a tensor on one."""
        return to_host(self.lengths)

    @cached_property
    def host_starts(self) -> tuple[int, ...]:
        """The starts as ints, zeros where there are none; waits likewise."""
        return (0,) * len(self.lengths) if self.starts is None else to_host(self.starts)

    @cached_property
    def host_counts(self) -> tuple[int, ...]:
        """How many queries each row has; waits likewise."""
        if self.query_counts is None:
            return (self.q.shape[1],) * len(self.lengths)
        return to_host(self.query_counts)

    @cached_property
    def device_slots(self) -> Tensor:
        """The slots as an int32 tensor on the device of the queries."""
        return to_device(self.slots, self.q.device)

    @cached_property
    def device_lengths(self) -> Tensor:
        """The lengths as an int32 tensor on the device of the queries."""
        return to_device(self.lengths, self.q.device)

    @cached_property
    def device_starts(self) -> Tensor | None:
        """The starts as an int32 tensor on the device of the queries."""
        return None if self.starts is None else to_device(self.starts, self.q.device)

    @cached_property
    def query_ends(self) -> Tensor:
        """Where each row's queries begin in the packed ones, and the end: ``[batch + 1]``, int32.

        Queries that are not packed count as if they were.
        """
        if self.query_counts is None:
            batch, queries = self.q.shape[:2]
            return torch.arange(batch + 1, dtype=torch.int32, device=self.q.device) * queries
        counts = to_device(self.query_counts, self.q.device)
        return pad(counts.cumsum(0, dtype=torch.int32), (1, 0))

    @property
    def most_queries(self) -> int:
        """The most queries of a row; of counts that the host does not know, their sum."""
        if isinstance(self.query_counts, Tensor):
            return self.q.shape[0]
        return max(self.host_counts, default=0)

    def check(self) -> None:
        """Raise a typed error where the parts do not fit together.

        :class:`~pyvattn.errors.TensorError` for tensors and indices,
        :class:`~pyvattn.errors.ConfigError` for a window or softcap that is none.
        """
        self._check_queries()
        self._check_indices()
        self._check_scores()

    def _check_queries(self) -> None:
        if not isinstance(self.q, Tensor):
            raise TensorError(f"q is {shown(self.q)}: use a tensor of torch")
        counted = "total" if self.packed else "batch, queries"
        if self.q.dim() != (3 if self.packed else 4):
            raise TensorError(
                f"q has shape {list(self.q.shape)}: use [{counted}, q_heads, head_dim]"
            )
        q_heads, head_dim = self.q.shape[-2:]
        kv_heads, cached_dim = self.k.shape[-2:]
        if head_dim != cached_dim or q_heads % kv_heads:
            raise TensorError(
                f"q has {q_heads} heads of {head_dim}, the cache {kv_heads} KV heads of "
                f"{cached_dim}: the dims must be equal and the heads a multiple"
            )
        if self.scales is not None:
            self._check_wide()
        elif self.q.dtype != self.k.dtype or self.q.device != self.k.device:
            remedy = (
                "give the cache scales with set_scales()"
                if self.k.dtype.itemsize == 1 and self.q.dtype in TORCH_DTYPES
                else "convert q, or make the cache with that dtype and device"
            )
            raise TensorError(
                f"q is {self.q.dtype} on {self.q.device}, the cache {self.k.dtype} on "
                f"{self.k.device}: {remedy}"
            )

    def _check_wide(self) -> None:
        """Refuse queries that were quantised before, whose scale nobody knows."""
        if self.q.dtype not in TORCH_DTYPES or self.q.device != self.k.device:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in TORCH_DTYPES)
            raise TensorError(
                f"q is {self.q.dtype} on {self.q.device}, for a cache with scales on "
                f"{self.k.device}: pass it there in one of {names}"
            )

    def _check_indices(self) -> None:
        slots, tokens = self.k.shape[:2]
        check_indices("slots", self.slots, None if self.packed else self.q.shape[0])
        for name, indices, most, limit in (
            ("slot", self.slots, slots - 1, "the cache's slots"),
            ("length", self.lengths, tokens, "max_tokens"),
            ("start", self.starts, tokens, "max_tokens"),
            ("query_count", self.query_counts, self.q.shape[0], "the queries of q"),
        ):
            if indices is None and name in ("start", "query_count"):
                continue
            whole = check_indices(f"{name}s", indices, len(self.slots))
            # A device is not waited for.
            if isinstance(whole, Tensor):
                continue
            if (value := outside(to_host(whole), most)) is not None:
                raise TensorError(f"{name} {value} is outside 0 to {most}, {limit}")
        self._check_sum()

    def _check_sum(self) -> None:
        if self.query_counts is None or isinstance(self.query_counts, Tensor):
            return
        if sum(self.host_counts) != self.q.shape[0]:
            raise TensorError(
                f"query_counts: {sum(self.host_counts)} in all, q has {self.q.shape[0]}: "
                "count every query once"
            )

    def _check_scores(self) -> None:
        check_window(self.window_size)
        if not (math.isfinite(self.softcap) and self.softcap >= 0):
            raise ConfigError(f"softcap {self.softcap}: use a positive number, or 0 for none")
        if self.alibi_slopes is not None:
            check_by_head("alibi_slopes", self.alibi_slopes, self.q, len(self.lengths))


def check_by_head(name: str, values: object, q: Tensor, rows: int | None = None) -> None:
    """Refuse what is not float32 ``[q_heads]`` or, with ``rows``, ``[rows, q_heads]`` beside q."""
    heads = q.shape[-2]
    shapes = [(heads,)] if rows is None else [(heads,), (rows, heads)]
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    if not isinstance(values, Tensor) or tuple(values.shape) not in shapes:
        raise TensorError(f"{name} {shown(values)}: use a tensor of shape {wanted}")
    if values.dtype != torch.float32 or values.device != q.device:
        raise TensorError(f"{name} is {values.dtype} on {values.device}: use float32 on {q.device}")


def check_window(window_size: object) -> None:
    """Refuse what is no pair of distances."""
    is_window = (
        isinstance(window_size, tuple)
        and len(window_size) == 2
        and all(type(side) is int and side >= UNLIMITED for side in window_size)
    )
    if not is_window:
        raise ConfigError(
            f"window_size {shown(window_size)}: use (left, right) in tokens, -1 for no limit"
        )


def check_cache(cache: object) -> None:
    """Refuse what has no layers to attend to; benches bring caches of their own."""
    if not (hasattr(cache, "spec") and hasattr(cache, "layer")):
        raise ArgumentError(f"cache={shown(cache)}: pass a KVCache or a RowMap")


def page_bytes_of(cache: object) -> int | None:
    """Return the bytes of a physical page of a cache or a row map, ``None`` of what has none."""
    size: int | None = getattr(getattr(cache, "pool", cache), "page_size", None)
    return size
