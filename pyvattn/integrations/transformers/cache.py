# SPDX-License-Identifier: Apache-2.0
"""The cache that goes into ``model.generate(past_key_values=...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyvattn.arguments import check_type, check_whole
from pyvattn.cache import KVCache
from pyvattn.errors import ConfigError, TensorError, UnsupportedError
from pyvattn.integrations.transformers.base import ContiguousCache
from pyvattn.integrations.transformers.compat import kinds_and_windows
from pyvattn.integrations.transformers.compiled import outside_graphs
from pyvattn.integrations.transformers.float8 import GivenScales, give_scales, widened
from pyvattn.integrations.transformers.forward import ForwardPass, check_new
from pyvattn.integrations.transformers.latent import latent_dim
from pyvattn.integrations.transformers.request import check_count
from pyvattn.integrations.transformers.rows import Rows
from pyvattn.integrations.transformers.selection import chosen_rows, repeat_count, whole_number
from pyvattn.integrations.transformers.spec import check_cache_options, spec_of_tokens
from pyvattn.integrations.transformers.states import StateLayers
from pyvattn.integrations.transformers.switch import (
    attend_through,
    attends_itself,
    takes_no_views,
)
from pyvattn.resolve import check_device

if TYPE_CHECKING:
    from types import TracebackType

    from transformers import PreTrainedModel

    from pyvattn.cache import Slot


class VAttentionCache(ContiguousCache):
    """A batch of sequences in the slots of a :class:`pyvattn.KVCache`.

    Row ``i`` of the batch has a slot of its own from the first forward pass
    until :meth:`reset` or :meth:`close`. Padding is not stored, wherever it
    stands, so row ``i`` holds and maps its real tokens only.

    The model must attend through pyvattn: :meth:`for_model` sees to it, or call
    ``model.set_attn_implementation("pyvattn")``. Models with attention code of their own
    (GPT-J, BLOOM, Falcon) keep it, and get the rows as views: padding is stored there.

    Greedy decoding, sampling, beam search, assisted decoding, chunked prefill,
    continuing a conversation with the same cache and ``copy.deepcopy`` of a
    saved prompt work. Layers with sliding windows hold their windows, and past them
    nothing can be cropped, as assisted decoding does. Nor can states (Mamba, linear
    attention), which :meth:`for_model` holds as the library does, outside the KVCache
    and its memory. Returned attention weights and custom 4-D masks raise
    :class:`~pyvattn.errors.UnsupportedError`.
    """

    def __init__(self, kv: KVCache) -> None:
        check_type("kv", kv, KVCache)
        if kv.chunk_tokens is not None:
            raise UnsupportedError(
                "the library hands a layer all new tokens at once, and rows that are rings take "
                f"{kv.chunk_tokens} of them: open the cache with LayerGroup(ring=False), or use "
                "Engine, which runs prompts in chunks"
            )
        super().__init__(kv)
        give_scales(kv, None)
        self._owned = False
        self._release_model: Callable[[], None] | None = None
        # Whether the model attends to what update() returns, with code of its own.
        self._read_by_model = False
        # Whether that code takes no views.
        self._copies = False
        self._rows = Rows(kv)
        # Which of the positions that the library counts are real, [batch, seen].
        # It stays on the host: the lengths of the rows come from it.
        self._real = torch.zeros(0, 0, dtype=torch.bool, device="cpu")
        self._real_after = self._real

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        *,
        max_batch: int,
        max_tokens: int,
        memory: int | str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        kv_dtype: str | None = None,
        kv_scales: GivenScales = None,
        **options: Any,
    ) -> VAttentionCache:
        """Make a cache for ``model`` and let the model attend through pyvattn.

        ``max_batch`` counts rows, beams included; ``max_tokens`` is the longest
        row, prompt and new tokens together: both cost addresses only. ``memory``
        is the most physical memory that the cache takes, and ``options``
        (``driver``, ``page_size``, ``layout``) are those of
        :class:`pyvattn.KVCache`. Closing the cache closes the KVCache, and the model
        attends as before.

        ``dtype`` and ``device`` are those of the model's weights, unless they are
        given: the device where an offloaded model computes, the dtype under autocast.

        ``kv_dtype="float8_e4m3fn"`` keeps K and V in float8, half of bfloat16, with
        ``kv_scales`` (a :class:`pyvattn.attention.KVScales`, or the file of one) or, by default,
        with scales that the first forward pass sets.
        """
        max_batch = check_count("max_batch", max_batch)
        check_cache_options(options)
        spec = spec_of_tokens(
            model,
            max_slots=max_batch,
            max_tokens=max_tokens,
            dtype=dtype if kv_dtype is None else kv_dtype,
        )
        if device is None and model.device.type == "meta":
            raise ConfigError(
                "the model's weights are offloaded, so they do not tell where it computes: pass "
                "device, such as 'cuda:0'"
            )
        where = check_device(model.device if device is None else device)
        kv = KVCache(spec, device=where, memory=memory, **options)
        try:
            give_scales(kv, kv_scales)
            cache = cls(kv)
            config = model.config.get_text_config(decoder=True)
            cache._hold_states(StateLayers(config, kinds_and_windows(config)[0]))
            cache._owned = True
            if attends_itself(model):
                cache._read_by_model, cache._copies = True, takes_no_views(model)
            else:
                cache._release_model = attend_through(model, cache)
        except BaseException:
            kv.close()
            raise
        return cache

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slot of each row."""
        return tuple(self._rows.slots)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The real tokens in each row."""
        return tuple(self._real.sum(dim=1).tolist())

    @property
    def batch_size(self) -> int:
        """The number of rows, or -1 before the first forward pass."""
        return len(self._rows.slots) or -1

    @property
    def is_initialized(self) -> bool:
        """Whether the rows have their slots."""
        return bool(self._rows.slots)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens seen so far, padding included, as the library counts them."""
        return self._real.shape[1]

    def read_layer(self, layer: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the K and V of a layer, each ``[rows, kv_heads, tokens, head_dim]``.

        They are views where the rows hold no padding and their slots lie side by side, and
        copies with zeros for padding elsewhere. Of a float8 cache they are float32 copies. Of
        latent vectors they are these and the rotary keys.
        """
        if self._kept and layer not in self._kept:
            return None, None
        layer = self._kept_layer(layer)
        if self.kv.spec.window_of(layer) is not None:
            raise UnsupportedError(
                f"layer {layer} keeps a window of its tokens, which is not all that was seen: "
                "attend to it, or use the library's DynamicCache"
            )
        if not self.get_seq_length():
            return None, None
        k, v = self._rows.read(layer, self._real)
        if latent := latent_dim(self.kv.spec, layer):
            return k[..., :latent], k[..., latent:]
        return widened(self.kv, layer, (k, v))

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor | None, None]]:
        """Yield the K and V of each layer, and no sliding window, as the library's caches do."""
        for layer in range(len(self)):
            yield *self.read_layer(layer), None

    def begin(self, batch_size: int, queries: int, padding_mask: Tensor | None) -> ForwardPass:
        """Back the new tokens of every row, and return the pass over them."""
        self.changes.check()
        real = self._check_mask(batch_size, queries, padding_mask)
        if self._pass is not None and len(self._masks) < 2:
            # States are changed in place, which nobody sees.
            self._check_states(True, "a pass after one that failed halfway")
        if self._pass is not None and torch.equal(real, self._real_after):
            # A second mask of the same pass, or the pass again after it failed.
            self._pass.restart()
            return self._pass
        seen = self.get_seq_length()
        lengths = tuple(real.sum(dim=1).tolist())
        if seen:
            self._drop_hidden(real[:, :seen])
        else:
            self._rows.acquire(lengths)
        self._rows.back(lengths, real[:, :seen].sum(dim=1).tolist())
        self._real_after = real
        slots = [int(slot) for slot in self._rows.slots]
        self._pass = ForwardPass.of_batch(self.kv, slots, lengths, real[:, seen:], self.device)
        self._pass.holes = bool((~real & (real.cumsum(dim=1) > 0)).any())
        return self._pass

    @outside_graphs
    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new tokens; returns what attention reads.

        For a model that attends through pyvattn that is the layer's whole K and V. For one with
        attention of its own it is all tokens of the batch, ``[batch, kv_heads, tokens,
        head_dim]``, padding included: of a layer with a window those that the new tokens see.
        These are views unless rows were reordered.
        """
        if not self._read_by_model:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        check_new(key_states, value_states)
        layer = self._kept_layer(layer_idx)
        # The model's own masks do not tell when a pass begins: the first of its layers does.
        if self._pass is None or layer == 0:
            self._pass = self.begin(len(key_states), key_states.shape[2], None)
        elif layer <= self._pass.layer or key_states.shape[2] != self._pass.queries:
            raise UnsupportedError(
                f"layer {layer_idx} attends more than once in a pass, or to other tokens than the "
                "layers before it: use the library's DynamicCache"
            )
        self._pass.write(layer, key_states, value_states)
        first, end = self._first_shown(layer_idx, self.get_seq_length()), self._real_after.shape[1]
        shown = widened(self.kv, layer, self._rows.read_span(layer, first, end))
        if layer == self.kv.spec.kept_layers - 1:
            self.finish()
        k, v = (each.to(key_states.dtype) for each in shown)
        return (k.contiguous(), v.contiguous()) if self._copies else (k, v)

    @outside_graphs
    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many keys a mask covers, and where the first of them stands."""
        if not self._read_by_model:
            return super().get_mask_sizes(query_length, layer_idx)
        new, seen = check_whole("query_length", query_length), self.get_seq_length()
        first = self._first_shown(layer_idx, seen)
        return seen + new - first, first

    def _masked_window(self, layer: int) -> int | None:
        """Return the window of a layer whose model attends to no more than it got."""
        if not self._read_by_model:
            return None
        return self.kv.spec.window_of(self._kept_layer(layer))

    def _first_shown(self, layer: int, seen: int) -> int:
        """Return the first token that the next ones see in a layer of the model."""
        window = self._masked_window(layer)
        return 0 if window is None else max(0, seen - window + 1)

    def finish(self) -> None:
        """Count the pass's tokens as seen. A pass that failed halfway never gets here."""
        super().finish()
        self._real = self._real_after

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` positions of every row.

        A positive number is the length to keep, as in earlier releases of the library.
        """
        seen = self.get_seq_length()
        remove = whole_number("tokens_to_remove", tokens_to_remove)
        keep = remove if remove > 0 else seen + remove
        self._check_windows(keep < seen, "crop()")
        self._check_states(keep < seen, "crop()")
        self._set_real(self._real[:, : max(0, min(keep, seen))])

    def reorder_cache(self, beam_idx: Tensor | Sequence[int]) -> None:
        """Make row ``i`` what row ``beam_idx[i]`` was, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        count = repeat_count(repeats)
        self._rows.check_room(len(self._rows.slots) * count)
        self._select([row for row in range(len(self._rows.slots)) for _ in range(count)])

    def batch_select_indices(self, indices: Tensor | Sequence[int]) -> None:
        """Keep the rows at ``indices`` (numbers, or one boolean for each row), in that order.

        Raises :class:`~pyvattn.errors.TensorError` for what names no row, with nothing moved.
        """
        if self.get_seq_length():
            self._select(chosen_rows(indices, len(self._rows.slots)))

    def reset(self) -> None:
        """Release every slot; the cache is as new. Pages stay mapped for the next batch."""
        self._set_real(torch.zeros(0, 0, dtype=torch.bool, device="cpu"))
        self.changes.forget()
        self._rows.release()
        self._states.forget()
        self._hold_states(self._states)

    def close(self) -> None:
        """Release every slot, and what :meth:`for_model` took: the KVCache and the model."""
        self.reset()
        if self._release_model is not None:
            self._release_model()
        if self._owned:
            self.kv.close()

    def __enter__(self) -> VAttentionCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> VAttentionCache:
        """Return a cache with the same rows in slots of their own, to go on from a saved prompt.

        Its slots are released with its :meth:`reset` or :meth:`close`, or when it is dropped.
        Raises :class:`~pyvattn.errors.OutOfSlots` or :class:`~pyvattn.errors.OutOfMemory`.
        """
        copy = memo[id(self)] = VAttentionCache(self.kv)
        copy._read_by_model, copy._copies = self._read_by_model, self._copies
        copy._hold_states(deepcopy(self._states, memo))
        copy._rows = self._rows.copy(self.lengths)
        copy._set_real(self._real)
        return copy

    def _check_mask(self, batch_size: int, queries: int, mask: Tensor | None) -> Tensor:
        """Return which positions are real, ``[batch, seen and new]``, on the host."""
        batch_size = check_count("batch_size", batch_size)
        queries = check_count("queries", queries)
        check_type("padding_mask", mask, Tensor, type(None))
        self._rows.check_room(batch_size)
        seen = self.get_seq_length()
        if seen and batch_size != len(self._rows.slots):
            raise TensorError(
                f"a batch of {batch_size} cannot go on where {len(self._rows.slots)} rows are "
                "cached: call reset() before another batch"
            )
        if mask is None:
            self._rows.check_length(seen + queries)
            mask = torch.ones(batch_size, seen + queries, dtype=torch.bool, device="cpu")
        if mask.dim() != 2 or mask.shape[0] != batch_size or mask.shape[1] < seen + queries:
            raise TensorError(
                f"the attention mask has shape {list(mask.shape)}: it must cover the {seen} "
                f"tokens seen and the {queries} new ones of {batch_size} rows (with "
                "use_cache=False, generate() feeds every token again: leave it out)"
            )
        real = mask[:, : seen + queries].bool().cpu()
        if seen and bool((real[:, :seen] & ~self._real).any()):
            raise UnsupportedError(
                "the attention mask shows tokens that an earlier mask hid, and what is hidden is "
                "not kept: call reset() and start over, or use the library's DynamicCache"
            )
        return real

    def _drop_hidden(self, shown: Tensor) -> None:
        """Drop the tokens that are cached and that the mask hides from now on."""
        hidden = self._real & ~shown
        self._check_windows(bool(hidden.any()), "a mask that hides cached tokens")
        self._check_states(bool(hidden.any()), "a mask that hides cached tokens")
        for row in hidden.any(dim=1).nonzero()[:, 0].tolist():
            cached = self._real[row].nonzero()[:, 0]
            self._rows.keep(row, shown[row][cached].nonzero()[:, 0])
        self._real = shown

    def _check_windows(self, changes: bool, what: str) -> None:
        """Refuse what would need tokens that layers with a window have given up."""
        windows = [window for window in self.kv.spec.windows if window is not None]
        if changes and windows and max(self.lengths, default=0) > min(windows):
            raise UnsupportedError(
                f"{what} needs tokens from before the window of {min(windows)}, which are not "
                "kept: use the library's DynamicCache"
            )

    def _check_states(self, changes: bool, what: str) -> None:
        """Refuse what would take states back."""
        if changes and self._states.layers:
            raise UnsupportedError(
                f"{what} needs states as they were before, which are not kept: call reset() and "
                "start over, or use the library's DynamicCache"
            )

    def _select(self, chosen: list[int]) -> None:
        """Make row ``i`` what row ``chosen[i]`` was."""
        if self.get_seq_length():
            self._rows.select(chosen, self.lengths)
            self._states.select(chosen)
            self._set_real(self._real[chosen])

    def _set_real(self, real: Tensor) -> None:
        """Have ``real`` be what is cached, and no pass under way."""
        self._real = self._real_after = real
        self._pass = None
