"""The cache that goes into ``model.generate(past_key_values=...)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyvattn.cache import KVCache
from pyvattn.errors import TensorError, UnsupportedError
from pyvattn.integrations.transformers.base import ContiguousCache
from pyvattn.integrations.transformers.forward import ForwardPass
from pyvattn.integrations.transformers.interface import ATTENTION
from pyvattn.integrations.transformers.spec import spec_for

if TYPE_CHECKING:
    from types import TracebackType

    from transformers import PreTrainedModel

    from pyvattn.cache import Slot


class VAttentionCache(ContiguousCache):
    """A batch of sequences in the slots of a :class:`pyvattn.KVCache`.

    Row ``i`` of the batch has a slot of its own from the first forward pass
    until :meth:`reset` or :meth:`close`. Prompts of unequal length are padded
    on the left, as the library wants it; padding is not stored, so row ``i``
    holds and maps its real tokens only.

    The model must attend through pyvattn: :meth:`for_model` sees to it, or call
    ``model.set_attn_implementation("pyvattn")``.

    Greedy decoding, sampling, beam search, assisted decoding, chunked prefill
    and continuing a conversation with the same cache work. Sliding windows,
    returned attention weights, custom 4-D masks, padding on the right and
    ``copy.deepcopy`` raise :class:`~pyvattn.errors.UnsupportedError`.
    """

    def __init__(self, kv: KVCache) -> None:
        super().__init__(kv)
        self._owned = False
        self._rows: list[Slot] = []
        # Which of the positions that the library counts are real, [batch, seen].
        # It stays on the host: the lengths of the rows come from it.
        self._real = torch.zeros(0, 0, dtype=torch.bool)
        self._real_after = self._real

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        *,
        max_batch: int,
        max_tokens: int,
        memory: int | str,
        **options: Any,
    ) -> VAttentionCache:
        """Make a cache for ``model`` and let the model attend through pyvattn.

        ``max_batch`` counts rows, beams included; ``max_tokens`` is the longest
        row, prompt and new tokens together: both cost addresses only. ``memory``
        is the most physical memory that the cache takes, and ``options``
        (``driver``, ``page_size``, ``layout``) are those of
        :class:`pyvattn.KVCache`; the device is the model's. Closing the cache
        closes the KVCache.
        """
        spec = spec_for(model, max_slots=max_batch, max_tokens=max_tokens)
        model.set_attn_implementation(ATTENTION)
        cache = cls(KVCache(spec, device=str(model.device), memory=memory, **options))
        cache._owned = True
        return cache

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slot of each row."""
        return tuple(self._rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The real tokens in each row."""
        return tuple(self._real.sum(dim=1).tolist())

    @property
    def batch_size(self) -> int:
        """The number of rows, or -1 before the first forward pass."""
        return len(self._rows) or -1

    @property
    def is_initialized(self) -> bool:
        """Whether the rows have their slots."""
        return bool(self._rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens seen so far, padding included, as the library counts them."""
        return self._real.shape[1]

    def begin(
        self, batch_size: int, queries: int, padding_mask: Tensor | None, device: torch.device
    ) -> ForwardPass:
        """Back the new tokens of every row; see :meth:`ContiguousCache.begin`."""
        real = self._check_mask(batch_size, queries, padding_mask)
        counts = tuple(real[:, -queries:].sum(dim=1).tolist())
        lengths = tuple(real.sum(dim=1).tolist())
        if self.get_seq_length() == 0:
            self._acquire_rows(lengths)
        slots = tuple(int(slot) for slot in self._rows)
        self.kv.step(dict(zip(self._rows, lengths, strict=True)))
        self._prefetch(lengths)
        self._real_after = real
        self._pass = ForwardPass.of_batch(self.kv, slots, lengths, counts, queries, device)
        return self._pass

    def finish(self) -> None:
        """Count the pass's tokens as seen. A pass that failed halfway never gets here."""
        super().finish()
        self._real = self._real_after

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` positions of every row.

        A positive number is the length to keep, as in earlier releases of the library.
        """
        seen = self.get_seq_length()
        keep = tokens_to_remove if tokens_to_remove > 0 else seen + tokens_to_remove
        self._real = self._real[:, : max(0, min(keep, seen))]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make row ``i`` what row ``beam_idx[i]`` was, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        self._select([row for row in range(len(self._rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at ``indices`` (numbers, or one boolean for each row), in that order."""
        chosen = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        self._select(chosen.tolist())

    def reset(self) -> None:
        """Release every slot; the cache is as new. Pages stay mapped for the next batch."""
        rows, self._rows = self._rows, []
        self._real = self._real_after = torch.zeros(0, 0, dtype=torch.bool)
        self._pass = None
        for slot in rows:
            self.kv.release(slot)

    def close(self) -> None:
        """Release every slot, and close the KVCache if :meth:`for_model` made it."""
        self.reset()
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

    def _check_mask(self, batch_size: int, queries: int, mask: Tensor | None) -> Tensor:
        """Return which positions are real, ``[batch, seen and new]``, on the host."""
        seen = self.get_seq_length()
        if seen and batch_size != len(self._rows):
            raise TensorError(
                f"a batch of {batch_size} cannot go on where {len(self._rows)} rows are cached: "
                "call reset() before another batch"
            )
        if mask is None:
            mask = torch.ones(batch_size, seen + queries, dtype=torch.bool)
        if mask.shape[0] != batch_size or mask.shape[1] < seen + queries:
            raise TensorError(
                f"the attention mask has shape {list(mask.shape)}: it must cover the {seen} "
                f"tokens seen and the {queries} new ones of {batch_size} rows"
            )
        real = mask[:, : seen + queries].bool().cpu()
        if seen and not torch.equal(real[:, :seen], self._real):
            raise UnsupportedError(
                "the attention mask hides or shows tokens that were cached otherwise: "
                "call reset() and start over, or use the library's DynamicCache"
            )
        new = real[:, seen:]
        if bool((new[:, :-1] & ~new[:, 1:]).any()):
            raise UnsupportedError(
                "padding stands to the right of real tokens: pad on the left "
                "(tokenizer.padding_side = 'left')"
            )
        return real

    def _acquire_rows(self, lengths: Sequence[int]) -> None:
        """Take a slot for each row; all or none."""
        self.reset()
        try:
            for length in lengths:
                self._rows.append(self.kv.acquire(tokens=length))
        except BaseException:
            self.reset()
            raise

    def _prefetch(self, lengths: Sequence[int]) -> None:
        """Map the next token's pages while the model computes this one's."""
        limit = self.kv.spec.max_tokens
        wanted = zip(self._rows, lengths, strict=True)
        self.kv.prefetch({slot: min(length + 1, limit) for slot, length in wanted})

    def _select(self, chosen: list[int]) -> None:
        """Make row ``i`` what row ``chosen[i]`` was.

        A slot moves along with the first row that wants it; only further copies
        of a row are copied, into the slots that no row wants any more.
        """
        if self.get_seq_length() == 0:
            return
        lengths = self.lengths
        copies = [row for row, old in enumerate(chosen) if old in chosen[:row]]
        spare = [slot for old, slot in enumerate(self._rows) if old not in chosen]
        taken = self._back_copies([lengths[chosen[row]] for row in copies], spare)
        rows = [self._rows[old] for old in chosen]
        for row, slot in zip(copies, spare + taken, strict=False):
            self._copy(self._rows[chosen[row]], slot, lengths[chosen[row]])
            rows[row] = slot
        self._rows, self._real = rows, self._real[chosen]
        for slot in (spare + taken)[len(copies) :]:
            self.kv.release(slot)

    def _back_copies(self, lengths: Sequence[int], spare: list[Slot]) -> list[Slot]:
        """Back a slot for each of ``lengths``; returns those taken beyond the spare ones."""
        taken: list[Slot] = []
        try:
            for length in lengths[len(spare) :]:
                taken.append(self.kv.acquire(tokens=length))
            self.kv.step(dict(zip(spare + taken, lengths, strict=False)))
        except BaseException:
            for slot in taken:
                self.kv.release(slot)
            raise
        return taken

    def _copy(self, source: Slot, target: Slot, length: int) -> None:
        for layer in range(self.kv.spec.layers):
            for tensor in self.kv.layer(layer):
                tensor[int(target), :length].copy_(tensor[int(source), :length])
