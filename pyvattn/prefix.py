# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike: what one request has computed is mapped into the next one's row."""

from __future__ import annotations

import hashlib
import math
import operator
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pyvattn._native import Fence, Slot
from pyvattn.arguments import check_type
from pyvattn.cache import KVCache
from pyvattn.errors import ArgumentError, LengthError, OutOfMemory, OutOfSlots, SlotError, SpecError
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
    """

    requests: int = 0
    hits: int = 0
    tokens: int = 0
    hit_tokens: int = 0
    evicted_slots: int = 0
    kept_slots: int = 0


@dataclass
class _Row:
    """What is known of a slot: the digest of each block that is finished, in order."""

    salt: bytes
    digests: list[bytes] = field(default_factory=list)
    # Blocks that other rows have got from it, or it from others.
    shared: int = 0


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

    Forget a slot with :meth:`forget` before you shorten it below what was published, trim its
    front, or write there. Any thread may call.
    """

    def __init__(self, cache: KVCache) -> None:
        check_type("cache", cache, KVCache)
        if cache.spec.groups:
            raise SpecError(
                "layers of the cache differ, and those with a window do not keep the beginning "
                "of a prompt: a PrefixIndex needs a spec without groups, such as spec.flat()"
            )
        geometry = cache.geometry
        #: Tokens of a block: the fewest that fill whole pages.
        self.block_tokens = geometry.page_size // math.gcd(geometry.page_size, geometry.token_bytes)
        self._cache = cache
        self._lock = threading.RLock()
        self._rows: dict[Slot, _Row] = {}
        # The slots that hold a block, by its digest.
        self._holders: dict[bytes, dict[Slot, None]] = {}
        # Slots that no request uses, the longest unused first, with what has to pass.
        self._kept: OrderedDict[Slot, Fence | None] = OrderedDict()
        self._counts = {"requests": 0, "hits": 0, "tokens": 0, "hit_tokens": 0, "evicted_slots": 0}
        cache.add_keeper(self)

    # --- for requests ---

    def admit(
        self, prompt: Sequence[int], tokens: int | None = None, salt: bytes | str = b""
    ) -> Admission:
        """Return a slot with its first ``tokens`` tokens backed, by default those of ``prompt``.

        The first ``hit`` of them are there already: compute the others, at least one. Raises
        what :meth:`pyvattn.KVCache.admit` raises, with nothing changed but what was kept.
        """
        ids = _ids(prompt)
        total = _total(ids, tokens)
        root = _root(salt)
        with self._lock:
            found = self._found(root, ids)
            slot, hit = self._take(found, total) if found else (None, 0)
            if slot is None:
                slot, hit = self._cache.admit(total), 0
                self._rows[slot] = _Row(root)
            self._counts["requests"] += 1
            self._counts["hits"] += hit > 0
            self._counts["tokens"] += len(ids)
            self._counts["hit_tokens"] += hit
        return Admission(slot, hit)

    def can_admit(
        self, prompt: Sequence[int], tokens: int | None = None, salt: bytes | str = b""
    ) -> bool:
        """Whether :meth:`admit` would find a slot and pages now."""
        ids = _ids(prompt)
        total, root = _total(ids, tokens), _root(salt)
        with self._lock:
            found = self._found(root, ids)
            for slot in self._holders[found[-1]] if found else ():
                if slot in self._kept:
                    self._kept.move_to_end(slot)
            return self._cache.can_admit(total - len(found) * self.block_tokens)

    def publish(self, slot: Slot, tokens: Sequence[int]) -> None:
        """Say that K and V of ``tokens``, from the slot's first on, are final.

        Whole blocks of them can be found from now on. On a GPU, kernels that read them must be
        launched behind those that write them. Raises :class:`~pyvattn.errors.SlotError` for a slot
        that :meth:`admit` did not return.
        """
        ids = _ids(tokens)
        with self._lock:
            row = self._row(slot)
            known = len(row.digests)
            last = row.digests[-1] if known else row.salt
            for digest in _chain(last, ids[known * self.block_tokens :], self.block_tokens):
                row.digests.append(digest)
                self._holders.setdefault(digest, {})[slot] = None

    def release(self, slot: Slot, after: object = None) -> None:
        """End a request; ``after`` as in :meth:`pyvattn.KVCache.release`.

        What was published of it is kept, unless another kept slot has it as well.
        """
        with self._lock:
            row = self._row(slot)
            last = self._holders[row.digests[-1]] if row.digests else {}
            twin = next((other for other in last if other in self._kept), None)
            fence = self._cache._fence(after)
            if row.digests and twin is None:
                self._kept[slot] = fence
                return
            if twin is not None:
                self._kept.move_to_end(twin)
            self._drop(slot)
            self._cache.release(slot, fence)

    def forget(self, slot: Slot) -> None:
        """Nobody finds what was published of a slot any more. It stays its request's."""
        with self._lock:
            salt = self._row(slot).salt
            self._drop(slot)
            self._rows[slot] = _Row(salt)

    # --- for the cache, and the end ---

    def give_up(self) -> bool:
        """Release the slot that was kept unused for longest; ``False`` where none is kept."""
        with self._lock:
            if not self._kept:
                return False
            slot, fence = self._kept.popitem(last=False)
            self._counts["evicted_slots"] += 1
            self._drop(slot)
            self._cache.release(slot, fence)
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

    def _row(self, slot: Slot) -> _Row:
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
        for digest in _chain(root, ids[:-1], self.block_tokens):
            if digest not in self._holders:
                break
            found.append(digest)
        return found

    def _take(self, found: list[bytes], total: int) -> tuple[Slot | None, int]:
        count = len(found)
        holders = list(self._holders[found[-1]])
        kept = [slot for slot in holders if slot in self._kept]
        ending = [slot for slot in kept if len(self._rows[slot].digests) == count]
        # A row that ends there is the request's own: nothing is mapped.
        for slot in ending:
            if self._reuse(slot, count, total):
                return slot, count * self.block_tokens
        return self._share(kept[-1] if kept else holders[-1], found, total)

    def _reuse(self, slot: Slot, count: int, total: int) -> bool:
        """Give a kept slot to a request that begins with its first ``count`` blocks.

        ``False``, with nothing changed, where other rows have more of it, so that its own tokens
        cannot lie there, and where the device may still read what would be written over.
        """
        fence = self._kept[slot]
        if self._rows[slot].shared > count or (fence is not None and not fence.passed()):
            return False
        del self._kept[slot]
        try:
            self._cache.step({slot: total})
        except BaseException as error:
            self._kept[slot] = fence
            if isinstance(error, LengthError):
                return False
            raise
        self._unpublish(slot, count)
        return True

    def _share(self, source: Slot, found: list[bytes], total: int) -> tuple[Slot | None, int]:
        """Map the blocks of ``source`` into another row; it is not given up meanwhile."""
        count, kept = len(found), source in self._kept
        fence = self._kept.pop(source, None)
        try:
            slot = self._forked(source, count * self.block_tokens, total)
        except (OutOfMemory, OutOfSlots):
            if not kept:
                raise
            self._kept[source] = fence
            if self._reuse(source, count, total):
                return source, count * self.block_tokens
            # Others have more of it: without it, there may be room.
            self._kept.move_to_end(source, last=False)
            self.give_up()
            return None, 0
        except BaseException:
            if kept:
                self._kept[source] = fence
            raise
        if kept:
            self._kept[source] = fence
        row = self._rows[source]
        row.shared = max(row.shared, count)
        self._rows[slot] = _Row(row.salt, list(found), shared=count)
        for digest in found:
            self._holders[digest][slot] = None
        return slot, count * self.block_tokens

    def _forked(self, source: Slot, tokens: int, total: int) -> Slot:
        slot = self._cache.fork(source, tokens)
        try:
            self._cache.step({slot: total})
        except BaseException:
            self._cache.release(slot)
            raise
        return slot

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


def _ids(tokens: Sequence[int]) -> list[int]:
    try:
        return array("q", [operator.index(token) for token in tokens]).tolist()
    except (TypeError, OverflowError, RuntimeError):  # the last for tensors without values
        raise ArgumentError(f"{shown(tokens)} is no sequence of token ids") from None


def _total(ids: list[int], tokens: object) -> int:
    total = len(ids) if tokens is None else whole_number(tokens)
    if total is None or total < len(ids):
        raise LengthError(f"tokens={shown(tokens)}: back {len(ids)} at least, as the prompt has")
    return total


def _root(salt: bytes | str) -> bytes:
    if isinstance(salt, str):
        return hashlib.sha256(b"str " + salt.encode("utf-8", "surrogatepass")).digest()
    if isinstance(salt, bytes):
        return hashlib.sha256(b"bytes " + salt).digest()
    raise ArgumentError(f"salt={shown(salt)}: use bytes or text")


def _chain(last: bytes, ids: Sequence[int], block: int) -> Iterator[bytes]:
    """Yield the digest of each whole block, each made of the one before."""
    for begin in range(0, len(ids) - block + 1, block):
        last = hashlib.sha256(last + array("q", ids[begin : begin + block]).tobytes()).digest()
        yield last
