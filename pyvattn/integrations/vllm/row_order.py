# SPDX-License-Identifier: Apache-2.0
"""In which order to hand out the blocks that vLLM evicts next: as a row has them already.

A block that stands where the request's row has it mapped costs no map call. So of the blocks
that least recently used eviction would take, those of one closed row are taken in its order. What
may be taken is rounded up to a whole old request, where that is no more than a hundredth of the
free blocks: so the prefix cache keeps all but a hundredth of what it would. Handing out whole old
requests regardless of their age would empty it.

The worker chooses rows by itself. What stands here is a copy of its books, led by the same
events: where the two differ, blocks are mapped that need not be, and nothing else happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

__all__ = ["RowOrder"]

# As many closed rows as the worker looks at, and those of them that are looked at in full.
_LOOKS = 64
_CANDIDATES = 12
# Blocks behind the prompt that count as room to grow.
_ROOM = 16
# What a block costs that is unmapped, and one that is cached and loses its place.
_UNMAPPED = 0.3
_GROWTH = 0.3
_LOST = 0.5


@dataclass
class _Row:
    """What a row has mapped, and how many of the first belong to its request."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0

    def put(self, blocks: Sequence[int]) -> None:
        self.blocks[self.length : self.length + len(blocks)] = blocks
        self.length += len(blocks)


class RowOrder:
    """The rows of a worker, as the scheduler's process knows them.

    ``rows``: how many requests have room. ``is_free``: whether nobody holds a block of vLLM's.
    """

    def __init__(self, rows: int, is_free: Callable[[int], bool]) -> None:
        self._rows = [_Row() for _ in range(rows)]
        self._is_free = is_free
        # Closed rows, the oldest first, and those of them that begin with a block.
        self._closed: dict[int, None] = dict.fromkeys(range(rows))
        self._beginning: dict[int, dict[int, None]] = {}
        self._open: dict[str, int] = {}
        # The row in which a block was mapped last, and when its last request ended.
        self._home: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._ends = 0
        self._horizon = 0

    def length(self, request: str) -> int:
        """Return how many blocks a request has, 0 for one that is not open."""
        row = self._open.get(request)
        return 0 if row is None else self._rows[row].length

    def choose(
        self,
        request: str,
        hits: Sequence[int],
        count: int,
        whole: int,
        oldest: Sequence[int],
        next_oldest: Sequence[int] = (),
    ) -> list[int | None]:
        """Return for each of ``count`` further blocks which one should be taken, if any.

        ``hits`` are those found in the prefix cache, of a request that begins; ``whole`` is the
        length that it will have at least, in blocks. ``oldest`` are the free blocks that would
        be evicted for it, and ``next_oldest`` those that may be in their place, where they are
        the rest of a whole request.
        """
        row = self._open.get(request)
        ended, hit, evicted = self._ended, set(hits), set(oldest)
        horizon = self._whole_requests(oldest, next_oldest)
        # Later blocks of a request come from what could be taken when one began last.
        self._horizon = horizon = max(horizon, self._horizon) if row is not None else horizon
        seen: set[int] = set()

        def may_go(block: int) -> bool:
            is_old = block in evicted or ended.get(block, 0) <= horizon
            return is_old and self._is_free(block) and block not in hit

        start = len(hits)
        if row is None:
            row = self._best(hits, max(whole, start + count), oldest, may_go)
            if row is None:
                return [None] * count
        else:
            start = self._rows[row].length
        taken: list[int | None] = []
        for block in self._rows[row].blocks[start : start + count]:
            # A row may have a block twice: where an older request had it, and behind that.
            fits = block not in seen and may_go(block)
            taken.append(block if fits else None)
            seen.add(block)
        return taken + [None] * (count - len(taken))

    def begin(self, request: str, blocks: Sequence[int]) -> None:
        """A request has its first blocks, those from the prefix cache among them."""
        row = self._landing(blocks)
        if row is None:
            return
        self._unlist(row)
        self._rows[row].length = 0
        self._open[request] = row
        self.extend(request, blocks)

    def extend(self, request: str, blocks: Sequence[int]) -> None:
        """A request has more blocks."""
        row = self._open.get(request)
        if row is None:
            return
        self._home.update(dict.fromkeys(blocks, row))
        self._rows[row].put(blocks)

    def end(self, request: str, cached: Iterable[bool]) -> None:
        """A request ends. ``cached``: whether each of its blocks can be found again."""
        row = self._open.pop(request, None)
        if row is None:
            return
        self._ends += 1
        blocks = self._rows[row].blocks[: self._rows[row].length]
        for block, is_cached in zip(blocks, cached, strict=False):
            self._ended[block] = self._ends if is_cached else 0
        self._closed[row] = None
        self._beginning.setdefault(self._rows[row].blocks[0], {})[row] = None

    def _whole_requests(self, oldest: Sequence[int], next_oldest: Sequence[int]) -> int:
        """Return the end of the last request of which ``next_oldest`` has all the rest."""
        ends = [self._ended.get(block, 0) for block in oldest]
        last = max(ends, default=0)
        is_whole = any(self._ended.get(block, 0) > last for block in next_oldest)
        return last if is_whole else last - 1

    def _unlist(self, row: int) -> None:
        del self._closed[row]
        blocks = self._rows[row].blocks
        if not blocks:
            return
        rows = self._beginning[blocks[0]]
        del rows[row]
        if not rows:
            del self._beginning[blocks[0]]

    def _landing(self, blocks: Sequence[int]) -> int | None:
        """Return the row that the worker will take: see ``ClosedRows`` in uvm_ext/rows."""
        best, longest = None, 0
        for row in islice(reversed(self._beginning.get(blocks[0], {})), _LOOKS):
            equal = _equal_prefix(self._rows[row], blocks)
            if equal > longest:
                best, longest = row, equal
        return self._oldest() if best is None else best

    def _oldest(self) -> int | None:
        unused = (row for row in self._closed if not self._rows[row].blocks)
        return next(unused, next(iter(self._closed), None))

    def _best(
        self,
        hits: Sequence[int],
        whole: int,
        oldest: Sequence[int],
        may_go: Callable[[int], bool],
    ) -> int | None:
        if hits:
            rows = list(islice(reversed(self._beginning.get(hits[0], {})), _LOOKS))
        else:
            # The worker finds a row by its first block: that one must be free to be taken.
            homes = Counter(self._home.get(block, -1) for block in oldest)
            rows = [
                row
                for row, _ in homes.most_common(_LOOKS)
                if row in self._closed and may_go(self._rows[row].blocks[0])
            ]
        if not rows:
            return self._oldest()
        rows.sort(key=lambda row: self._probe(row, hits, whole, may_go), reverse=True)
        return max(rows[:_CANDIDATES], key=lambda row: self._worth(row, hits, whole, may_go))

    def _probe(
        self, row: int, hits: Sequence[int], whole: int, may_go: Callable[[int], bool]
    ) -> int:
        """Count how many of a few positions would stay."""
        blocks, start = self._rows[row].blocks, len(hits)
        at_hits = {start // 2, start - 1} if start else set()
        kept = sum(i < len(blocks) and blocks[i] == hits[i] for i in at_hits)
        behind = {start, (start + whole) // 2, whole - 1}
        return kept + 2 * sum(i < len(blocks) and may_go(blocks[i]) for i in behind)

    def _worth(
        self, row: int, hits: Sequence[int], whole: int, may_go: Callable[[int], bool]
    ) -> float:
        """Return the map calls that a row saves, less those that taking it will cost."""
        blocks, start = self._rows[row].blocks, len(hits)
        kept = sum(map(int.__eq__, blocks[:start], hits))
        going = [may_go(block) for block in blocks[start:]]
        kept += sum(going[: whole - start])
        grown = sum(going[whole - start : whole - start + _ROOM])
        home, is_free = self._home, self._is_free
        lost = sum(
            not goes and home.get(block) == row and is_free(block)
            for block, goes in zip(blocks[start:], going, strict=True)
        )
        unmapped = min(whole, len(blocks)) - kept
        return kept + _GROWTH * grown - _UNMAPPED * unmapped - _LOST * lost


def _equal_prefix(row: _Row, blocks: Sequence[int]) -> int:
    most = min(len(blocks), len(row.blocks))
    if row.blocks[:most] == list(blocks[:most]):
        return most
    return next(i for i in range(most) if row.blocks[i] != blocks[i])
