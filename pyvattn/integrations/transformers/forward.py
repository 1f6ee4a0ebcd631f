# SPDX-License-Identifier: Apache-2.0
"""What one forward pass of the model reads and writes in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NoReturn

import torch
from torch import Tensor

from pyvattn.attention import Step, append, attend
from pyvattn.attention.problem import UNLIMITED
from pyvattn.errors import TensorError, UnsupportedError
from pyvattn.integrations.transformers.compiled import outside_graphs
from pyvattn.integrations.transformers.float8 import calibrate
from pyvattn.integrations.transformers.latent import LatentRows, latent_dim
from pyvattn.integrations.transformers.parts import (
    Calls,
    Chunk,
    Part,
    host,
    parts_in_chunks,
    parts_of,
    parts_of_rows,
    upload,
)
from pyvattn.text import shown

if TYPE_CHECKING:
    from torch.nn import Module

    from pyvattn.cache import KVCache


@dataclass(frozen=True)
class Scores:
    """What a layer's attention does besides: a window (0: none) or chunks, a softcap, sinks."""

    window: int = 0
    softcap: float | None = None
    sinks: Tensor | None = None
    #: Whether ``window`` is the size of chunks, within which tokens attend.
    chunked: bool = False


_PLAIN = Scores()


class _Whole:
    """Stands in the place of a mask, and has no parts."""

    def __getitem__(self, part: object) -> NoReturn:
        """Refuse a model that has some of its layers attend with the last queries alone."""
        raise UnsupportedError(
            "the model cuts its mask for layers that need its last queries alone (Gemma 4 with "
            "shared K and V, in newer releases of transformers): use generate_batch, or the "
            "library's DynamicCache"
        )


@dataclass
class ForwardPass(_Whole):
    """Where the new tokens of a pass go, and what they attend to.

    The library hands it to every attention layer in place of a mask. ``slots`` and
    ``positions`` (int64 tensors on the model's device) say where each new token is
    stored; they broadcast to ``[batch, queries]``. ``source`` picks the real tokens
    where the batch holds padding as well, which is neither stored nor attended to.
    The tokens must be backed: ``KVCache.step`` comes first.
    """

    kv: KVCache
    queries: int
    slots: Tensor
    positions: Tensor
    parts: Sequence[Part]
    source: tuple[Tensor, Tensor] | None = None
    #: Whether its tokens are a prompt's, which scales of float8 may be taken from.
    calibrates: bool = True
    #: As of a :class:`WindowedPass`: none.
    window: ClassVar[int] = 0
    chunked: ClassVar[bool] = False
    #: Whether rows have padding behind their first token, in the pass or before.
    holes: bool = field(default=False, init=False)
    layer: int = field(default=-1, init=False)
    # K and V of that layer, until it attended.
    _stored: tuple[Tensor, Tensor] | None = field(default=None, init=False)
    # Those of the layers before that others read, by layer.
    _read_again: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)
    _latent: LatentRows | None = field(default=None, init=False)
    # What the layers' calls share.
    _step: Step = field(default_factory=Step, init=False)
    # The parts of layers that attend within chunks, by their size.
    _in_chunks: dict[int, Sequence[Part]] = field(default_factory=dict, init=False)

    @classmethod
    def of_batch(
        cls,
        kv: KVCache,
        slots: Sequence[int],
        lengths: Sequence[int],
        real: Tensor,
        device: torch.device,
    ) -> ForwardPass:
        """Return the pass of a batch with one slot for each row.

        ``lengths`` are those afterwards. ``real`` (boolean, ``[batch, queries]``, on the host)
        tells which of the new tokens are real; the rest is padding, wherever it stands.
        """
        parts = parts_of_rows(slots, lengths, real, device)
        ends, rows = host(lengths)[:, None], host(slots)[:, None]
        at = ends - real.sum(dim=1, keepdim=True) + real.cumsum(dim=1) - 1
        queries = real.shape[1]
        if real.all():
            return cls(kv, queries, upload(rows, device), upload(at, device), parts)
        # Found on the host: what nonzero() finds on a device has to be waited for.
        row, column = real.nonzero(as_tuple=True)
        source = upload(row, device), upload(column, device)
        stored = upload(rows[row, 0], device), upload(at[real], device)
        return cls(kv, queries, *stored, parts, source)

    @classmethod
    def of_step(cls, kv: KVCache, slots: Tensor, lengths: Tensor, part: Part) -> ForwardPass:
        """Return the pass that adds one token to each of ``slots``; ``lengths`` count it.

        Both are int64 tensors, and ``part`` is the same. Where that holds tensors alone, no
        value is read on the host, so the pass can be captured in a CUDA graph.
        """
        return cls(kv, 1, slots[:, None], lengths[:, None] - 1, [part], calibrates=False)

    @classmethod
    def of_chunks(
        cls, kv: KVCache, chunks: Sequence[Chunk], device: torch.device, calls: Calls
    ) -> ForwardPass:
        """Return the pass of a packed batch: one row, the tokens of all chunks in turn.

        ``calls`` says how they are divided among calls of the attention kernel.
        """
        slots = torch.cat(
            [torch.full((chunk.count,), chunk.slot, device="cpu") for chunk in chunks]
        )
        positions = torch.cat(
            [torch.arange(chunk.first, chunk.end, device="cpu") for chunk in chunks]
        )
        return cls(
            kv,
            len(slots),
            upload(slots, device)[None],
            upload(positions, device)[None],
            parts_of(chunks, device, calls),
        )

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``[batch, kv_heads, queries, head_dim]`` of ``layer`` into the slots.

        Returns the layer's whole K and V, which attention must be called with.
        """
        check_new(key, value)
        if self._stored is not None:
            raise UnsupportedError(
                f"no attention was asked for layer {self.layer}, so the model does not use the "
                "library's attention interface: use the library's DynamicCache"
            )
        self.write(layer, key, value)
        if latent_dim(self.kv.spec, layer):
            self._latent = self._latent or LatentRows.of(self.parts)
            self._stored = self._latent.read(self.kv, layer)
            return self._stored
        self._stored = whole = self.kv.layer(layer)
        if layer in self.kv.spec.shared.values():
            self._read_again[layer] = whole
        return whole

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write as :meth:`store` does, for a model that attends with code of its own."""
        self.layer = layer
        dtype = self.kv.layer(layer)[0].dtype
        k, v = (_autocast(each, dtype).transpose(1, 2) for each in (key, value))
        if self.source is not None:
            k, v = k[self.source], v[self.source]
        if latent := latent_dim(self.kv.spec, layer):
            if k.shape[-1] != latent:
                raise _not_latent(layer)
            append(self.kv, layer, self.slots, self.positions, torch.cat((k, v), dim=-1), k)
            return
        if self.calibrates:
            calibrate(self.kv, layer, k, v)
        slots, positions = self.slots, self.positions
        if self.kv.chunk_tokens is not None and slots.shape == positions.shape == k.shape[:-2]:
            # Tokens of many rows, and not one row of so many.
            slots, positions = slots.flatten(), positions.flatten()
            k, v = k.flatten(0, -3), v.flatten(0, -3)
        append(self.kv, layer, slots, positions, k, v)

    @outside_graphs
    def attend(
        self,
        module: Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        scores: Scores = _PLAIN,
    ) -> Tensor:
        """Attend ``[batch, q_heads, queries, head_dim]`` to the layer stored last.

        ``key`` and ``value`` are what :meth:`store` returned for it or, where others read its
        tokens too, for an earlier one; of latent vectors, what the model expanded them to. What
        a model else made of them is not in the cache. The result is ``[batch, queries, q_heads,
        head_dim]``, as the library has it.
        """
        layer = self._attended(module, key, value)
        q = _autocast(query, key.dtype).transpose(1, 2)
        parts = self.parts
        if scores.chunked and scores.window < self.kv.spec.max_tokens:
            parts = self._parts_in_chunks(scores.window)
        if parts and parts[0].whole:
            attended = self._attend(layer, parts[0], parts[0].take(q), (key, value), scale, scores)
            return attended.view(*q.shape[:-1], value.shape[-1])
        # Padding in front of a row attends to nothing.
        make = torch.empty if self.source is None else torch.zeros
        out = make((*q.shape[:-1], value.shape[-1]), dtype=q.dtype, device=q.device)
        for part in parts:
            attended = self._attend(layer, part, part.take(q), (key, value), scale, scores)
            part.put(attended, out)
        return out

    def _parts_in_chunks(self, size: int) -> Sequence[Part]:
        """Return the parts of the pass, none of which is in more than one chunk of a row."""
        if self.holes:
            raise UnsupportedError(
                "chunks of attention are counted from the first token of a row, and with padding "
                "behind it the library counts otherwise: pad on the left, or use the library's "
                "DynamicCache"
            )
        if size not in self._in_chunks:
            device = self.positions.device
            self._in_chunks[size] = parts_in_chunks(self.parts, self.queries, size, device)
        return self._in_chunks[size]

    def restart(self) -> None:
        """Make the pass as new, after one that failed halfway."""
        self.layer = -1
        self._stored = None
        self._read_again.clear()

    def _attended(self, module: Module, key: Tensor, value: Tensor) -> int:
        """Return the layer whose K and V these are."""
        stored, self._stored = self._stored, None
        if stored is None:
            for layer, earlier in self._read_again.items():
                if _same(key, earlier[0]) and _same(value, earlier[1]):
                    return layer
        elif latent_dim(self.kv.spec, self.layer):
            if key.shape[::2] == stored[0].shape[::2] == value.shape[::2]:
                return self.layer
        elif _same(key, stored[0]) and _same(value, stored[1]):
            return self.layer
        raise UnsupportedError(
            f"{type(module).__name__} changes keys or values once they are cached, or attends "
            "more than once in a layer, which attention inside the cache cannot follow: use "
            "the library's DynamicCache"
        )

    def _attend(
        self,
        layer: int,
        part: Part,
        q: Tensor,
        given: tuple[Tensor, Tensor],
        scale: float | None,
        scores: Scores,
    ) -> Tensor:
        if self._latent is not None and latent_dim(self.kv.spec, layer):
            if scores != _PLAIN:
                raise UnsupportedError(
                    f"layer {layer} attends to latent vectors within a window, or with a softcap "
                    "or sinks: use the library's DynamicCache"
                )
            return self._latent.attend(part, q, *given, scale or q.shape[-1] ** -0.5)
        window = scores.window if scores.window < self.kv.spec.max_tokens else 0
        kept = self.kv.spec.window_of(layer)
        if kept is not None and not 0 < window <= kept:
            raise UnsupportedError(
                f"layer {layer} attends to {window or 'all'} tokens, and the cache keeps "
                f"{kept} of them: open the cache with spec_for(model, max_slots, max_tokens)"
            )
        # attend() knows the window of layers that keep no more.
        left = window - 1 if window and kept != window else UNLIMITED
        sinks = None if scores.sinks is None else scores.sinks.float()
        return attend(
            q,
            self.kv,
            layer,
            part.slots,
            part.lengths,
            causal=True,
            scale=scale,
            window_size=(left, UNLIMITED),
            softcap=scores.softcap or 0.0,
            starts=part.starts(kept or 0),
            sinks=sinks,
            query_counts=part.counts,
            step=self._step,
        )


@dataclass(frozen=True)
class WindowedPass(_Whole):
    """A pass as layers with a window get it."""

    step: ForwardPass
    window: int
    chunked: bool = False


def check_new(key: object, value: object) -> None:
    """Raise where these are not K and V of new tokens, or carry gradients."""
    for name, new in (("key_states", key), ("value_states", value)):
        if not isinstance(new, Tensor) or new.dim() != 4:
            raise TensorError(
                f"{name}={shown(new)}: pass a tensor of [batch, kv_heads, queries, head_dim]"
            )
        if new.requires_grad:
            raise UnsupportedError(
                "the cache does not carry gradients: call the model under torch.no_grad()"
            )


def _not_latent(layer: int) -> UnsupportedError:
    return UnsupportedError(
        f"the model hands layer {layer} other tensors than a latent vector and a rotary key: use "
        "the library's DynamicCache"
    )


def _same(tensor: Tensor, stored: Tensor) -> bool:
    """Whether ``tensor`` is ``stored``, or another name for the same memory."""
    return tensor is stored or (
        tensor.shape == stored.shape
        and tensor.stride() == stored.stride()
        and tensor.data_ptr() == stored.data_ptr()
    )


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``tensor`` as ``dtype`` under autocast, where the library's attention casts too.

    For float8, which has scales of its own, as what autocast computes in.
    """
    where = tensor.device.type
    if tensor.dtype == dtype or not torch.is_autocast_enabled(where):
        return tensor
    return tensor.to(torch.get_autocast_dtype(where) if dtype.itemsize == 1 else dtype)
