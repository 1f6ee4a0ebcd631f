# SPDX-License-Identifier: Apache-2.0
"""Which of our blocks stands behind each of vLLM's ids, chosen when a request gets the id.

A block id of vLLM's is a name. What a fresh one held is dead, so any block may stand behind it:
best is the one that the request's row has mapped at that position already. The two ids then
change their blocks, and what the other one holds, for the prefix cache, is copied to where the
fresh one was. A copy is made by the GPU in stream order; a map call is made by the driver, and
costs many times as much.

Here are the books alone. Ids are vLLM's, *pages* are our blocks, by their index.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

__all__ = ["LateBinding"]

# So many of the longest closed rows are looked at, and of those that begin as is wanted; and so
# many positions of each.
_CANDIDATES = 64
_SAMPLES = 24
# A row that ended so few steps ago may still be read: to unmap something there means to wait.
_STEPS_READ = 3
# In map calls: what that costs; a position where something else is to be unmapped first; a page
# whose contents are copied elsewhere; and contents that a request which finds them again will not
# have in place. A row that has had no request yet is mapped once, and then there for good: its
# positions count for less.
_WAIT = 100.0
_REPLACED = 1.5
_COPIED = 0.1
_LOST = 0.3
_FIRST = 0.3

# From the first page to the second.
Move = tuple[int, int]


@dataclass
class _Row:
    """What a row has mapped, as far as is known, and how many of the first are its request's."""

    pages: list[int] = field(default_factory=list)
    length: int = 0
    ended_at: int = 0


class LateBinding:
    """The pages of so many ids, and what each of ``rows`` rows has mapped.

    The row map decides by itself which row a request gets, and is told no more than pages: it
    takes the row that begins with them. What is known of rows here only decides how much has to
    be mapped; that contents stay with their ids depends on pages alone.
    """

    def __init__(self, blocks: int, rows: int) -> None:
        self._page_of = list(range(blocks))
        self._id_of = list(range(blocks))
        # In how many open rows each page is, and the row where its contents were last in place.
        self._uses = [0] * blocks
        self._home: list[int | None] = [None] * blocks
        self._rows: dict[int, _Row] = {}
        self._unopened = rows
        # Closed rows, the longest closed first, and those of them that begin with a page.
        self._closed: dict[int, None] = {}
        self._beginning: dict[int, dict[int, None]] = {}
        self._step = 0

    def pages(self, ids: Iterable[int]) -> list[int]:
        """Return the page behind each id."""
        return [self._page_of[id_] for id_ in ids]

    def hold(self, id_: int) -> None:
        """Leave an id its page for good."""
        self._uses[self._page_of[id_]] += 1

    def bind(self, ids: Sequence[int], fixed: int) -> list[Move]:
        """Give the ids of a request pages that a closed row has; return what is to be copied.

        The first ``fixed`` ids hold tokens, and keep their pages. The copies do not depend on
        each other: no page is read that another one writes.
        """
        row = self._best(self.pages(ids), fixed)
        mapped = [] if row is None else self._rows[row].pages
        return self._exchange(ids[fixed:], mapped[fixed:], set(self.pages(ids[:fixed])))

    def bind_more(self, row: int, ids: Sequence[int]) -> list[Move]:
        """Give further ids of a request, all of them fresh, what its row has behind its end."""
        known = self._rows[row]
        return self._exchange(ids, known.pages[known.length : known.length + len(ids)], set())

    def open(self, row: int, ids: Sequence[int]) -> None:
        """A request with these ids has a row."""
        if row in self._closed:
            self._unlist(row)
            if self._rows[row].ended_at == self._step:
                # The map takes away what lies behind the end of a row that never was closed.
                del self._rows[row].pages[len(ids) :]
        else:
            self._unopened -= 1
            self._rows[row] = _Row()
        self._rows[row].length = 0
        self.extend(row, ids)

    def extend(self, row: int, ids: Sequence[int]) -> None:
        """It has more of them."""
        known = self._rows[row]
        pages = self.pages(ids)
        known.pages[known.length : known.length + len(pages)] = pages
        known.length += len(pages)
        for page in pages:
            self._uses[page] += 1
            self._home[page] = row

    def close(self, row: int) -> None:
        """The request has ended; the row keeps what it has mapped."""
        known = self._rows[row]
        for page in known.pages[: known.length]:
            self._uses[page] -= 1
        known.length, known.ended_at = 0, self._step
        self._closed[row] = None
        if known.pages:
            self._beginning.setdefault(known.pages[0], {})[row] = None

    def forget_tail(self, row: int) -> None:
        """Something else is mapped behind the end of an open row."""
        known = self._rows[row]
        del known.pages[known.length :]

    def end_step(self) -> None:
        """What was opened and closed so far is carried out, and kernels that read it follow."""
        self._step += 1

    def _exchange(self, ids: Sequence[int], mapped: Sequence[int], taken: set[int]) -> list[Move]:
        own = set(ids)
        moved_from: dict[int, int] = {}
        for index, id_ in enumerate(ids):
            page = self._page_of[id_]
            # An id that an open row has already holds what that request shares with this one.
            if self._uses[page]:
                continue
            wanted = mapped[index] if index < len(mapped) else page
            if wanted not in taken and not self._uses[wanted]:
                other = self._swap(id_, wanted)
                if other not in own:
                    moved_from.setdefault(other, wanted)
                page = wanted
            taken.add(page)
        return [(source, self._page_of[id_]) for id_, source in moved_from.items()]

    def _swap(self, id_: int, page: int) -> int:
        """Give an id a page; the id that had it, which is returned, gets the other's."""
        other, left = self._id_of[page], self._page_of[id_]
        self._page_of[id_], self._id_of[page] = page, id_
        self._page_of[other], self._id_of[left] = left, other
        self._home[page] = self._home[left] = None
        return other

    def _unlist(self, row: int) -> None:
        del self._closed[row]
        pages = self._rows[row].pages
        if not pages:
            return
        rows = self._beginning[pages[0]]
        del rows[row]
        if not rows:
            del self._beginning[pages[0]]

    def _best(self, wanted: Sequence[int], fixed: int) -> int | None:
        """Return the row that the row map will take, once pages have been exchanged for it."""
        if not wanted:
            return None
        fresh = set(wanted[fixed:])
        same = list(islice(reversed(self._beginning.get(wanted[0], {})), _CANDIDATES))
        # What vLLM evicts for this request is of rows that will not be found again as they are.
        homes = [self._home[page] for page in _samples(wanted[fixed:])]
        dying = [row for row in homes if row in self._closed]
        rows = dict.fromkeys([*same, *dying, *islice(self._closed, _CANDIDATES)])
        fitting = [row for row in rows if self._begins(row, wanted[0], fixed)]
        costs = {row: self._cost(row, wanted, fixed, fresh) for row in fitting}
        best = min(costs, key=costs.__getitem__, default=None)
        # Where no row begins with the page the row map takes an empty one, if there is one, and
        # else the longest closed.
        if self._unopened and not same and (best is None or costs[best] > _FIRST * len(wanted)):
            return None
        return next(iter(self._closed), None) if best is None else best

    def _begins(self, row: int, wanted: int, fixed: int) -> bool:
        pages = self._rows[row].pages
        return bool(pages) and (pages[0] == wanted or not (fixed or self._uses[pages[0]]))

    def _cost(self, row: int, wanted: Sequence[int], fixed: int, fresh: Container[int]) -> float:
        """Estimate what it takes to map the pages of a request there, in map calls."""
        pages = self._rows[row].pages
        have = min(len(pages), len(wanted))
        cost = float(len(wanted) - have)
        is_replaced = False
        stride = _stride(have)
        for i in range(0, have, stride):
            page = pages[i]
            if page == wanted[i]:
                continue
            if i < fixed or self._uses[page]:
                is_replaced = True
                cost += _REPLACED * stride
            elif page not in fresh:
                cost += _COPIED * stride
            cost += self._lost(row, page, fresh) * stride
        # Behind its blocks the request may grow, and in front of them nobody looks for the rest.
        stride = _stride(len(pages) - have)
        cost += stride * sum(self._lost(row, page, fresh) for page in pages[have::stride])
        ago = self._step - self._rows[row].ended_at
        is_cut = (is_replaced and ago < _STEPS_READ) or (len(pages) > have and ago == 0)
        return cost + (_WAIT if is_cut else 0.0)

    def _lost(self, row: int, page: int, fresh: Container[int]) -> float:
        return _LOST if self._home[page] == row and page not in fresh else 0.0


def _stride(length: int) -> int:
    return max(1, -(-length // _SAMPLES))


def _samples(pages: Sequence[int]) -> Sequence[int]:
    return pages[:: _stride(len(pages))]
