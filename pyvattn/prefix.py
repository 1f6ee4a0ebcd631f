# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike: what one request has computed is mapped into the next one's row."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyvattn._native import Fence, Slot
from pyvattn.arguments import check_type
from pyvattn.block_hashes import chain, root_of, token_ids
from pyvattn.cache import KVCache
from pyvattn.errors import (
    DriverError,
    LengthError,
    OutOfMemory,
    OutOfSlots,
    SlotError,
)
from pyvattn.prefix_rows import Row, Source
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

__all__ = ["Admission", "PrefixIndex", "PrefixStats"]


class Admission(NamedTuple):
    """A slot, and how many of its first tokens have their K and V already."""

    slot: Slot
    hit: int


@dataclass(frozen=True)
class PrefixStats:
    """What an index has found so far: requests, and tokens of their prompts.

    ``hits`` of the ``requests`` that were admitted began like an earlier one; ``hit_tokens`` of
    the ``tokens`` of their prompts need not be computed. ``kept_slots`` are kept for later
    prompts now; ``evicted_slots`` were given up so far because memory or slots were short.
    ``snapshots`` is how often windows or states were kept in a slot of their own, and
    ``missed_snapshots`` how often that could not be done, mostly for want of memory or slots.
    """

    requests: int = 0
    hits: int = 0
    tokens: int = 0
    hit_tokens: int = 0
    evicted_slots: int = 0
    kept_slots: int = 0
    snapshots: int = 0
    missed_snapshots: int = 0


class PrefixIndex:
    """Finds prompts that begin like earlier ones, in the slots of a cache.

    A block of tokens is known by a hash of its tokens and all before them, begun with a *salt*:
    requests share only with those of the same salt. Give tenants, adapters and whatever else
    changes K and V (images behind placeholder tokens, say) a salt of their own.

    :meth:`admit` takes the place of :meth:`pyvattn.KVCache.admit`, :meth:`publish` says which
    tokens are finished, and :meth:`release` keeps the slot for later prompts. A kept slot goes
    when the cache needs its memory or its row, the longest unused first, so that no call of the
    cache fails for want of what is kept. Slots cost addresses only: open the cache with more
    than run at once.

    Where layers have windows (:class:`pyvattn.LayerGroup`), a prompt can go on only where the
    window before is still there: where an earlier request ended, to the token, and where the
    index has kept it. That it does at the last whole block of every prompt and where two prompts
    parted, each in a slot of its own, which shares the row's pages. Of windows in rings it has a
    copy, and so has who goes on there: publish what was computed before more than
    :attr:`pyvattn.KVCache.chunk_tokens` tokens follow, and no token that the row lacks.

    Where layers keep states (:class:`pyvattn.StateGroup`), the same places are found, and such a
    slot has a copy of the states. These are what they are at one length alone: compute a prompt
    only as far as :meth:`next_snapshot` says, :meth:`publish` that, and go on. A slot is kept where
    all of its tokens were published.

    Forget a slot with :meth:`forget` before you shorten it below what was published, trim its
    front, or write there. Any thread may call.
    """

    def __init__(self, cache: KVCache) -> None:
        check_type("cache", cache, KVCache)
        #: Tokens of a block: the fewest that fill whole pages in all layers.
        self.block_tokens = math.lcm(
            *(g.page_size // math.gcd(g.page_size, g.token_bytes) for g in cache.geometries)
        )
        self._cache = cache
        self._has_windows = any(cache.spec.windows)
        self._has_states = bool(cache.spec.states)
        # Whether a prompt can go on in some places alone, which are to be kept.
        self._has_places = self._has_windows or self._has_states
        self._lock = threading.RLock()
        self._rows: dict[Slot, Row] = {}
        # The slots that hold a block, by its digest.
        self._holders: dict[bytes, dict[Slot, None]] = {}
        # Slots that no request uses, the longest unused first, with what has to pass.
        self._kept: OrderedDict[Slot, Fence | None] = OrderedDict()
        self._counts = dict.fromkeys(
            ("requests", "hits", "tokens", "hit_tokens", "evicted_slots"), 0
        )
        self._counts |= {"snapshots": 0, "missed_snapshots": 0}
        cache.add_keeper(self)

    # --- for requests ---

    def admit(
        self, prompt: Sequence[int], tokens: int | None = None, salt: bytes | str = b""
    ) -> Admission:
        """Return a slot with its first ``tokens`` tokens backed, by default those of ``prompt``.

        The first ``hit`` of them are there already: compute the others, at least one. Raises
        what :meth:`pyvattn.KVCache.admit` raises, with nothing changed but what was kept.
        """
        ids = token_ids(prompt)
        total = _total(ids, tokens)
        root = root_of(salt)
        with self._lock:
            found = self._found(root, ids)
            source = self._source(found, ids)
            slot, hit = self._take(source, total) if source else (None, 0)
            if slot is None:
                slot, hit = self._cache.admit(total), 0
                self._rows[slot] = Row(root)
            if self._has_places:
                self._rows[slot].ends = {len(found), (len(ids) - 1) // self.block_tokens} - {0}
            self._counts["requests"] += 1
            self._counts["hits"] += hit > 0
            self._counts["tokens"] += len(ids)
            self._counts["hit_tokens"] += hit
        return Admission(slot, hit)

    def hit_of(self, prompt: Sequence[int], salt: bytes | str = b"") -> int:
        """Return how many tokens of ``prompt`` :meth:`admit` would find there now."""
        ids, root = token_ids(prompt), root_of(salt)
        with self._lock:
            source = self._source(self._found(root, ids), ids)
            return source.hit if source else 0

    def can_admit(
        self, prompt: Sequence[int], tokens: int | None = None, salt: bytes | str = b""
    ) -> bool:
        """Whether :meth:`admit` would find a slot and pages now."""
        ids = token_ids(prompt)
        total, root = _total(ids, tokens), root_of(salt)
        with self._lock:
            source = self._source(self._found(root, ids), ids)
            for slot in source.slots if source else ():
                if slot in self._kept:
                    self._kept.move_to_end(slot)
            return self._cache.can_admit(total - (source.hit if source else 0))

    def next_snapshot(self, slot: Slot, tokens: int) -> int | None:
        """Return where states are to be kept next, of a slot that has ``tokens`` computed.

        Compute so many tokens and no more, publish them, then ask again. ``None`` where nothing is
        to be kept any more, and without states: compute all there are. Raises
        :class:`~pyvattn.errors.SlotError` for a slot that :meth:`admit` did not return.
        """
        computed = whole_number(tokens)
        if computed is None or computed < 0:
            raise LengthError(f"tokens={shown(tokens)}: use the number of tokens that are computed")
        with self._lock:
            row = self._row(slot)
            ends = [end * self.block_tokens for end in row.ends] if self._has_states else []
            return min((end for end in ends if end > computed), default=None)

    def publish(self, slot: Slot, tokens: Sequence[int]) -> None:
        """Say that K and V of ``tokens``, from the slot's first on, are final.

        Whole blocks of them can be found from now on. On a GPU, kernels that read them must be
        launched behind those that write them. The states of a slot must have seen these tokens and
        no others: where they are to be kept, they are copied on the stream that torch is using, so
        let it wait for whatever writes them. Raises :class:`~pyvattn.errors.SlotError` for a slot
        that :meth:`admit` did not return.
        """
        ids = token_ids(tokens)
        with self._lock:
            row = self._row(slot)
            known = len(row.digests)
            last = row.digests[-1] if known else row.salt
            for digest in chain(last, ids[known * self.block_tokens :], self.block_tokens):
                row.digests.append(digest)
                self._holders.setdefault(digest, {})[slot] = None
            if self._has_places:
                row.tail = ids[len(row.digests) * self.block_tokens :]
                self._keep_ends(slot, row)

    def release(self, slot: Slot, after: object = None) -> None:
        """End a request; ``after`` as in :meth:`pyvattn.KVCache.release`.

        What was published of it is kept, unless another kept slot has it as well.
        """
        with self._lock:
            row = self._row(slot)
            last = self._holders[row.digests[-1]] if row.digests else {}
            twin = next((other for other in last if self._replaces(other, row)), None)
            fence = self._cache._fence(after)
            if row.digests and twin is None and self._goes_on(slot, row):
                self._kept[slot] = fence
                return
            if twin is not None:
                self._kept.move_to_end(twin)
            self._drop(slot)
            self._cache.release(slot, fence)

    def forget(self, slot: Slot) -> None:
        """Nobody finds what was published of a slot any more. It stays its request's."""
        with self._lock:
            row = self._row(slot)
            for mark in row.marks:
                # They may keep what was never computed.
                if mark in self._kept:
                    self._let_go(mark)
            self._drop(slot)
            self._rows[slot] = Row(row.salt)

    # --- for the cache, and the end ---

    def give_up(self) -> bool:
        """Release the slot that was kept unused for longest; ``False`` where none is kept."""
        with self._lock:
            if not self._kept:
                return False
            self._counts["evicted_slots"] += 1
            self._let_go(next(iter(self._kept)))
            return True

    def kept_pages(self) -> int:
        """Pages under the rows of kept slots; live slots may have some of them too."""
        with self._lock:
            pages = self._cache.live_pages()
            return sum(pages[slot] for slot in self._kept)

    def clear(self) -> None:
        """Release everything that is kept."""
        while self.give_up():
            pass

    def close(self) -> None:
        """Release everything that is kept, and let go of the cache."""
        if not self._cache.closed:
            self.clear()
        self._cache.remove_keeper(self)

    def stats(self) -> PrefixStats:
        """Count requests, hits and what is kept."""
        with self._lock:
            return PrefixStats(**self._counts, kept_slots=len(self._kept))

    # --- finding ---

    def _row(self, slot: Slot) -> Row:
        check_type("slot", slot, Slot)
        row = self._rows.get(slot)
        if row is None or slot in self._kept:
            raise SlotError(f"{shown(slot)} is none that this index admitted, or was released")
        return row

    def _found(self, root: bytes, ids: list[int]) -> list[bytes]:
        """Return the digests of the longest run of blocks that some slot has.

        The last token of a prompt is always computed: its logits are what is wanted.
        """
        found = []
        for digest in chain(root, ids[:-1], self.block_tokens):
            if digest not in self._holders:
                break
            found.append(digest)
        return found

    def _source(self, found: list[bytes], ids: list[int]) -> Source | None:
        """Return the slots that have most of a prompt which begins with blocks ``found``."""
        least: dict[Slot, int] = {}
        for count in range(len(found), 0, -1):
            holders = self._holders[found[count - 1]]
            least.update((slot, self._least(slot)) for slot in holders if slot not in least)
            hit = count * self.block_tokens
            for slot in holders:
                row = self._rows[slot]
                end = self._end(row)
                ends_here = slot in self._kept and len(row.digests) == count
                if ends_here and hit < end < len(ids) and row.tail == ids[hit:end]:
                    return Source([slot], found[:count], end)
            slots = [slot for slot in holders if least[slot] <= hit]
            if self._has_states:
                slots = [slot for slot in slots if self._has_state_at(slot, hit)]
            if slots:
                return Source(slots, found[:count], hit)
        return None

    def _has_state_at(self, slot: Slot, tokens: int) -> bool:
        """Whether the states of a slot are those after ``tokens``, and stay so."""
        return slot in self._kept and self._end(self._rows[slot]) == tokens

    def _goes_on(self, slot: Slot, row: Row) -> bool:
        """Whether another request may go on where a row ends."""
        # What was published of a slot with states is where these are, if there is no more of it.
        end = self._end(row)
        is_whole = not self._has_states or self._cache.length(slot) == end
        return is_whole and self._least(slot) <= end

    def _least(self, slot: Slot) -> int:
        """Return the fewest tokens of a slot behind which every layer's window is there."""
        return self._cache._native.least_length(slot) if self._has_windows else 0

    def _end(self, row: Row) -> int:
        return len(row.digests) * self.block_tokens + len(row.tail)

    def _replaces(self, slot: Slot, row: Row) -> bool:
        """Whether a slot is kept and has whatever a row could be found for."""
        other = self._rows[slot]
        same_end = len(other.digests) == len(row.digests) and other.tail == row.tail
        return slot in self._kept and (same_end or not self._has_places)

    # --- taking ---

    def _take(self, source: Source, total: int) -> tuple[Slot | None, int]:
        kept = [slot for slot in source.slots if slot in self._kept]
        # A row that ends there is the request's own: nothing is mapped.
        for slot in kept:
            row = self._rows[slot]
            ends_there = len(row.digests) == len(source.digests) and not row.is_mark
            if ends_there and self._reuse(slot, source, total):
                return slot, source.hit
        return self._share(kept[-1] if kept else source.slots[-1], source, total)

    def _reuse(self, slot: Slot, source: Source, total: int) -> bool:
        """Give a kept slot to a request that begins with what ``source`` says.

        ``False``, with nothing changed, where other rows have more of it, so that its own tokens
        cannot lie there, and where the device may still read what would be written over.
        """
        fence, row = self._kept[slot], self._rows[slot]
        if row.shared > len(source.digests) or (fence is not None and not fence.passed()):
            return False
        del self._kept[slot]
        try:
            if self._has_places:
                self._step_back(slot, source)
            self._cache.step({slot: total})
        except BaseException as error:
            self._kept[slot] = fence
            if isinstance(error, LengthError):
                return False
            raise
        self._unpublish(slot, len(source.digests))
        row.is_mark, row.tail = False, []
        return True

    def _step_back(self, slot: Slot, source: Source) -> None:
        """Let a slot end where a request begins: a step leaves behind what that does not see."""
        self._cache.step({slot: source.hit})
        self._unpublish(slot, len(source.digests))
        row = self._rows[slot]
        del row.tail[source.hit - len(source.digests) * self.block_tokens :]

    def _share(self, origin: Slot, source: Source, total: int) -> tuple[Slot | None, int]:
        """Map the blocks of ``origin`` into another row; it is not given up meanwhile."""
        kept = origin in self._kept
        fence = self._kept.pop(origin, None)
        try:
            slot = self._forked(origin, source.hit, total)
        except (OutOfMemory, OutOfSlots):
            if not kept:
                raise
            self._kept[origin] = fence
            if self._reuse(origin, source, total):
                return origin, source.hit
            # Others have more of it: without it, there may be room.
            self._kept.move_to_end(origin, last=False)
            self.give_up()
            return None, 0
        except BaseException:
            if kept:
                self._kept[origin] = fence
            raise
        if kept:
            self._kept[origin] = fence
        self._add_sharer(slot, origin, source.digests)
        return slot, source.hit

    def _add_sharer(self, slot: Slot, origin: Slot, digests: list[bytes]) -> Row:
        """Note that a slot has got its first blocks from another."""
        row = self._rows[origin]
        row.shared = max(row.shared, len(digests))
        self._rows[slot] = Row(row.salt, list(digests), shared=len(digests))
        for digest in digests:
            self._holders[digest][slot] = None
        return self._rows[slot]

    def _forked(self, source: Slot, tokens: int, total: int) -> Slot:
        slot = self._cache.fork(source, tokens)
        try:
            self._cache.step({slot: total})
        except BaseException:
            self._cache.release(slot)
            raise
        return slot

    # --- keeping windows and states ---

    def _keep_ends(self, slot: Slot, row: Row) -> None:
        """Keep what a later prompt may go on behind, as far as it is published."""
        for count in sorted(end for end in row.ends if end <= len(row.digests)):
            row.ends.discard(count)
            if self._has_states and count * self.block_tokens < self._end(row):
                # They have seen more already.
                continue
            holders = map(self._rows.__getitem__, self._holders[row.digests[count - 1]])
            if any(other.is_mark and len(other.digests) == count for other in holders):
                continue
            mark = self._marked(slot, count * self.block_tokens, self._end(row))
            self._counts["snapshots" if mark is not None else "missed_snapshots"] += 1
            if mark is not None:
                self._add_sharer(mark, slot, row.digests[:count]).is_mark = True
                self._kept[mark] = None
                row.marks.append(mark)

    def _marked(self, slot: Slot, tokens: int, written: int) -> Slot | None:
        """Return a fork of whole blocks, for which no more than one kept slot goes."""
        for may_go in (True, False):
            try:
                return self._cache._snapshot(slot, tokens, written)
            except (OutOfMemory, OutOfSlots):
                if not may_go or not self.give_up():
                    return None
            except (LengthError, DriverError):
                # The window is gone already, or nothing can be mapped: it is found no more.
                return None
        return None

    def _let_go(self, slot: Slot) -> None:
        fence = self._kept.pop(slot)
        self._drop(slot)
        self._cache.release(slot, fence)

    def _drop(self, slot: Slot) -> None:
        self._unpublish(slot, 0)
        del self._rows[slot]

    def _unpublish(self, slot: Slot, kept: int) -> None:
        """Forget the blocks of a slot behind its first ``kept``."""
        digests = self._rows[slot].digests
        for digest in digests[kept:]:
            holders = self._holders[digest]
            del holders[slot]
            if not holders:
                del self._holders[digest]
        del digests[kept:]


def _total(ids: list[int], tokens: object) -> int:
    total = len(ids) if tokens is None else whole_number(tokens)
    if total is None or total < len(ids):
        raise LengthError(f"tokens={shown(tokens)}: back {len(ids)} at least, as the prompt has")
    return total
