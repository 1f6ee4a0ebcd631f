# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch, each in a slot of a KVCache."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.errors import Error, LengthError, OutOfSlots
from pyvattn.text import shown

if TYPE_CHECKING:
    from pyvattn.cache import KVCache, Slot


class Rows:
    """One slot for each row. Lengths are the caller's to keep.

    The slots are released when the object is dropped, at the latest.
    """

    def __init__(self, kv: KVCache) -> None:
        self.kv = kv
        self.slots: list[Slot] = []
        weakref.finalize(self, _drop, kv, self.slots).atexit = False

    def check_room(self, rows: int) -> None:
        """Raise :class:`~pyvattn.errors.OutOfSlots` where the cache has not so many slots."""
        if rows > self.kv.spec.max_slots:
            raise OutOfSlots(
                f"a batch of {shown(rows)} rows needs as many slots, and the cache has "
                f"{self.kv.spec.max_slots}: make it with a larger max_batch"
            )

    def check_length(self, tokens: int) -> None:
        """Raise :class:`~pyvattn.errors.LengthError` where a row cannot have so many tokens."""
        if tokens > self.kv.spec.max_tokens:
            raise LengthError(
                f"rows of {shown(tokens)} tokens do not fit in max_tokens="
                f"{self.kv.spec.max_tokens}: make the cache with more"
            )

    def acquire(self, lengths: Sequence[int]) -> None:
        """Take a slot for each row; all or none."""
        self.release()
        try:
            for length in lengths:
                self.slots.append(self.kv.acquire(tokens=length))
        except BaseException:
            self.release()
            raise

    def back(self, lengths: Sequence[int], seen: Sequence[int]) -> None:
        """Back ``lengths`` tokens of the rows, and have the page of the next token mapped.

        ``seen`` of them were computed before: a pass that failed may have backed more.
        """
        longer = zip(self.slots, seen, strict=True) if any(self.kv.spec.windows) else ()
        if back := {slot: count for slot, count in longer if self.kv.length(slot) > count}:
            self.kv.step(back)
        self.kv.step(dict(zip(self.slots, lengths, strict=True)))
        limit = self.kv.spec.max_tokens
        wanted = zip(self.slots, lengths, strict=True)
        self.kv.prefetch({slot: min(length + 1, limit) for slot, length in wanted})

    def release(self) -> None:
        """Give every slot back."""
        _release(self.kv, self.slots)

    def select(self, chosen: Sequence[int], lengths: Sequence[int]) -> None:
        """Make row ``i`` what row ``chosen[i]`` was.

        A slot moves along with the first row that wants it; only further copies
        of a row are copied, into the slots that no row wants any more.
        """
        copies = [row for row, old in enumerate(chosen) if old in chosen[:row]]
        spare = [slot for old, slot in enumerate(self.slots) if old not in chosen]
        taken = self._back_copies([lengths[chosen[row]] for row in copies], spare)
        slots = [self.slots[old] for old in chosen]
        for row, slot in zip(copies, spare + taken, strict=False):
            self._copy(self.slots[chosen[row]], slot, lengths[chosen[row]])
            slots[row] = slot
        self.slots[:] = slots
        for slot in (spare + taken)[len(copies) :]:
            self.kv.release(slot)

    def copy(self, lengths: Sequence[int]) -> Rows:
        """Return the same rows in slots of their own; ``lengths`` tokens of each are copied."""
        rows = Rows(self.kv)
        rows.acquire(lengths)
        rows.back(lengths, [0] * len(lengths))
        for source, target, length in zip(self.slots, rows.slots, lengths, strict=True):
            self._copy(source, target, length)
        return rows

    def keep(self, row: int, tokens: Tensor) -> None:
        """Drop all but ``tokens`` of a row (int64, ascending, on the host)."""
        slot, count = int(self.slots[row]), len(tokens)
        stay = int((tokens == torch.arange(count, device="cpu")).sum())
        for layer in range(self.kv.spec.kept_layers if stay < count else 0):
            for tensor in self.kv.layer(layer):
                tensor[slot, stay:count] = tensor[slot, tokens[stay:].to(tensor.device)]

    def read(self, layer: int, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V of a layer as the library has them, ``[rows, kv_heads, tokens, dim]``.

        ``real`` (boolean, ``[rows, tokens]``, on the host) tells which of the tokens the rows
        hold; zeros stand for the others. The tensors are views where all are held and the
        slots lie side by side.
        """
        if real.all():
            return self.read_span(layer, 0, real.shape[1])
        k, v = self.kv.layer(layer)
        slots = [int(slot) for slot in self.slots]
        row, column = (index.to(k.device) for index in real.nonzero(as_tuple=True))
        slot, place = torch.tensor(slots, device=k.device)[row], (real.cumsum(dim=1) - 1)[real]
        full_k, full_v = (each.new_zeros(*real.shape, *each.shape[2:]) for each in (k, v))
        full_k[row, column] = k[slot, place.to(k.device)]
        full_v[row, column] = v[slot, place.to(k.device)]
        return full_k.transpose(1, 2), full_v.transpose(1, 2)

    def read_span(self, layer: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Return tokens ``first`` to ``end`` of all rows, which hold them, as :meth:`read` does."""
        k, v = self.kv.layer(layer)
        slots = [int(slot) for slot in self.slots]
        rows: slice | Tensor = slice(slots[0], slots[0] + len(slots))
        if slots != list(range(slots[0], slots[0] + len(slots))):
            rows = torch.tensor(slots, device=k.device)
        return k[rows, first:end].transpose(1, 2), v[rows, first:end].transpose(1, 2)

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
        spec = self.kv.spec
        for layer in range(spec.kept_layers):
            # What lies before the window of the next token may be gone.
            window = spec.window_of(layer)
            first = 0 if window is None else max(0, length - window + 1)
            for tensor in self.kv.layer(layer):
                tensor[int(target), first:length].copy_(tensor[int(source), first:length])


def _release(kv: KVCache, slots: list[Slot]) -> None:
    """Release ``slots`` and empty the list."""
    released, slots[:] = slots[:], []
    for slot in released:
        if not kv.closed:
            kv.release(slot)


def _drop(kv: KVCache, slots: list[Slot]) -> None:
    """Release ``slots`` where a failure cannot be reported."""
    with suppress(Error):
        _release(kv, slots)
