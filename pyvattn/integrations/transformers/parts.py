# SPDX-License-Identifier: Apache-2.0
"""Which tokens of the model's batch attend together, in one call of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from pyvattn.attention.indices import Indices, KnownIndices, to_host


@dataclass(frozen=True)
class Chunk:
    """Tokens ``first`` to ``end`` of a slot, which a packed batch adds to it."""

    slot: int
    first: int
    end: int

    @property
    def count(self) -> int:
        """The number of tokens."""
        return self.end - self.first


@dataclass(frozen=True)
class Row:
    """Tokens of a slot from ``first`` on, which stand at ``places`` of the flattened batch."""

    slot: int
    first: int
    places: Sequence[int]

    @property
    def end(self) -> int:
        """Where the next token of the slot stands."""
        return self.first + len(self.places)

    def cut(self, size: int) -> list[Row]:
        """Return the row in pieces, none of which is in more than one chunk of ``size``."""
        borders = [self.first, *range((self.first // size + 1) * size, self.end, size), self.end]
        return [
            Row(self.slot, first, self.places[first - self.first : end - self.first])
            for first, end in pairwise(borders)
        ]


@dataclass(frozen=True)
class Part:
    """The whole batch ``[batch, queries, heads, dim]``: a slot and its length for each row."""

    slots: Indices
    lengths: Indices
    whole: ClassVar[bool] = True

    @property
    def counts(self) -> KnownIndices | None:
        """How many queries each row has where they lie one row after the other."""
        return None

    def starts(self, window: int) -> Indices | None:
        """Return where the windows of rows begin whose queries are fewer than the part's.

        ``window`` is what the layer keeps, 0 for all.
        """
        return None

    def rows(self, queries: int) -> list[Row]:
        """Return the rows of the part, in a batch of ``queries`` tokens a row, by the host."""
        found = []
        for place, (slot, length) in enumerate(zip(*self._on_host(), strict=True)):
            # What a row has more queries than tokens is padding in front of it.
            count, end = min(queries, length), (place + 1) * queries
            found.append(Row(slot, length - count, range(end - count, end)))
        return found

    def _on_host(self) -> tuple[Sequence[int], Sequence[int]]:
        return to_host(self.slots), to_host(self.lengths)

    def take(self, q: Tensor) -> Tensor:
        """Return the queries of the part, ``[rows, queries, heads, dim]``."""
        return q

    def put(self, attended: Tensor, out: Tensor) -> None:
        """Write what they attended to where the batch, ``out``, has them."""
        out.copy_(attended)


@dataclass(frozen=True)
class Span(Part):
    """One chunk of a packed batch, as a view."""

    span: slice
    whole: ClassVar[bool] = False

    def take(self, q: Tensor) -> Tensor:
        """Return a view of the chunk's queries."""
        return q[:, self.span]

    def put(self, attended: Tensor, out: Tensor) -> None:
        """Write into the chunk's place."""
        out[:, self.span] = attended

    def rows(self, queries: int) -> list[Row]:
        """Return the one row."""
        (slot,), (length,) = self._on_host()
        places = range(self.span.start, self.span.stop)
        return [Row(slot, length - len(places), places)]


@dataclass(frozen=True)
class Packed(Part):
    """All chunks of a packed batch, for kernels that take the queries of many rows as they lie.

    ``firsts`` says where in its slot each row's first query stands, ``queries`` how many it has.
    """

    firsts: KnownIndices
    queries: KnownIndices

    @property
    def counts(self) -> KnownIndices:
        """How many queries each row has."""
        return self.queries

    def starts(self, window: int) -> KnownIndices | None:
        """Return where each row's window begins."""
        return _starts(self.firsts, window)

    def rows(self, queries: int) -> list[Row]:
        """Return the rows, which lie one after the other."""
        ends = list(accumulate(self.queries))
        return [
            Row(slot, first, range(end - count, end))
            for slot, first, count, end in zip(
                to_host(self.slots), self.firsts, self.queries, ends, strict=True
            )
        ]

    def take(self, q: Tensor) -> Tensor:
        """Return a view of the queries, ``[total, heads, dim]``."""
        return q.flatten(0, 1)


@dataclass(frozen=True)
class Group(Part):
    """Tokens from anywhere in the batch, as rows that are padded on the left.

    ``tokens`` (int64, ``[rows, queries]``) are places in the batch, flattened to one row; any
    where a row is padded. ``real`` are the places of ``tokens``, flattened, that are not padding.
    ``firsts`` says where in its slot each row's first query stands that is not.
    """

    tokens: Tensor
    real: Tensor
    firsts: KnownIndices
    whole: ClassVar[bool] = False

    def starts(self, window: int) -> KnownIndices | None:
        """Return where each row's window begins."""
        return _starts(self.firsts, window)

    def take(self, q: Tensor) -> Tensor:
        """Gather the queries, row by row."""
        return q.flatten(0, 1)[self.tokens]

    def put(self, attended: Tensor, out: Tensor) -> None:
        """Scatter what is not padding."""
        out.flatten(0, 1)[self.tokens.flatten()[self.real]] = attended.flatten(0, 1)[self.real]

    def rows(self, queries: int) -> list[Row]:
        """Return the rows without their padding."""
        return [
            Row(slot, first, places[len(places) - (length - first) :])
            for slot, length, first, places in zip(
                *self._on_host(), self.firsts, self.tokens.tolist(), strict=True
            )
        ]


@dataclass(frozen=True)
class InChunk(Part):
    """The whole batch of a token a row, each of which attends from ``begins`` on."""

    begins: Indices

    def starts(self, window: int) -> Indices:
        """Return where each row's chunk begins."""
        return self.begins


@dataclass(frozen=True)
class GroupInChunk(Group):
    """Rows of which each attends from ``begins`` on."""

    begins: KnownIndices

    def starts(self, window: int) -> KnownIndices:
        """Return where each row's chunk begins."""
        return self.begins


def parts_in_chunks(
    parts: Sequence[Part], queries: int, size: int, device: torch.device
) -> list[Part]:
    """Return ``parts`` of a batch of ``queries`` tokens a row, cut where chunks of ``size`` end.

    A token a row is not cut, so lengths that are known on the device alone serve as well.
    """
    if queries == 1 and parts[0].whole:
        lengths = parts[0].lengths
        if isinstance(lengths, Tensor):
            return [InChunk(parts[0].slots, lengths, (lengths - 1).clamp(min=0) // size * size)]
        begins = [max(0, length - 1) // size * size for length in to_host(lengths)]
        return [InChunk(parts[0].slots, lengths, known(begins, device))]
    groups: dict[int, list[Row]] = {}
    whole = (row for part in parts for row in part.rows(queries))
    for piece in (piece for row in whole for piece in row.cut(size) if piece.places):
        groups.setdefault((len(piece.places) - 1).bit_length(), []).append(piece)
    return [_rows_in_chunks(rows, size, device) for rows in groups.values()]


def _rows_in_chunks(rows: Sequence[Row], size: int, device: torch.device) -> GroupInChunk:
    most = max(len(row.places) for row in rows)
    padded = [[row.places[0]] * (most - len(row.places)) + list(row.places) for row in rows]
    real = [
        place * most + column
        for place, row in enumerate(rows)
        for column in range(most - len(row.places), most)
    ]
    return GroupInChunk(
        known([row.slot for row in rows], device),
        known([row.end for row in rows], device),
        upload(torch.tensor(padded, device="cpu"), device),
        upload(real, device),
        known([row.first for row in rows], device),
        known([row.first // size * size for row in rows], device),
    )


class Calls(Enum):
    """How the chunks of a packed batch are divided among calls of a kernel."""

    #: Each alone.
    ALONE = "alone"
    #: Those of about the same size are the rows of one call, of which less than half is padding:
    #: for kernels that take many rows of one size at once.
    GROUPED = "grouped"
    #: All in one, as they lie: for kernels that take packed queries.
    PACKED = "packed"


def parts_of(chunks: Sequence[Chunk], device: torch.device, calls: Calls) -> list[Part]:
    """Return the parts of a packed batch of ``chunks``, each one call of a kernel."""
    if calls is Calls.PACKED and len(chunks) > 1:
        return [_packed(chunks, device)]
    offsets = [0]
    for chunk in chunks:
        offsets.append(offsets[-1] + chunk.count)
    groups: dict[int, list[int]] = {}
    for index, chunk in enumerate(chunks):
        alike = -index if calls is Calls.ALONE else (chunk.count - 1).bit_length()
        groups.setdefault(alike, []).append(index)
    return [
        _part([chunks[i] for i in group], [offsets[i] for i in group], device, len(chunks))
        for group in groups.values()
    ]


def parts_of_rows(
    slots: Sequence[int], lengths: Sequence[int], real: Tensor, device: torch.device
) -> list[Part]:
    """Return the parts of a batch of rows, of whose new tokens ``real`` tells which are real.

    ``real`` is boolean, ``[batch, queries]``, on the host; ``lengths`` are those afterwards.
    One part where padding stands before the first token of a row only. What follows a token
    attends as well, as in the library: to the tokens of its row that stand before it.
    """
    before = host(lengths)[:, None] - real.sum(dim=1, keepdim=True) + real.cumsum(dim=1)
    padding = ~real & (before > 0)
    if not padding.any():
        return [Part(known(slots, device), known(lengths, device))]
    rows, places = padding.nonzero()[:, 0], padding.flatten().nonzero()
    alone = Group(
        known([slots[row] for row in rows.tolist()], device),
        known(before[padding].tolist(), device),
        upload(places, device),
        upload(torch.arange(len(places), device="cpu"), device),
        known((before[padding] - 1).tolist(), device),
    )
    return [alone, *_aligned(slots, lengths, real, device)]


def _aligned(
    slots: Sequence[int], lengths: Sequence[int], real: Tensor, device: torch.device
) -> list[Part]:
    """Return the part of the real tokens of every row, if there are any."""
    counts = real.sum(dim=1)
    most = int(counts.max())
    if not most:
        return []
    used = torch.arange(most, device="cpu") >= most - counts[:, None]
    tokens = torch.zeros(used.shape, dtype=torch.long, device="cpu")
    tokens[used] = real.flatten().nonzero()[:, 0]
    places = used.flatten().nonzero()[:, 0]
    group = known(slots, device), known(lengths, device)
    firsts = known((host(lengths) - counts).tolist(), device)
    return [Group(*group, upload(tokens, device), upload(places, device), firsts)]


def _packed(chunks: Sequence[Chunk], device: torch.device) -> Packed:
    columns = ("slot", "end", "first", "count")
    return Packed(*(known([getattr(chunk, name) for chunk in chunks], device) for name in columns))


def _starts(firsts: KnownIndices, window: int) -> KnownIndices | None:
    """Return where a window of so many tokens begins that ends with each of ``firsts``."""
    if not window:
        return None
    first = [max(0, place - window + 1) for place in firsts]
    return KnownIndices.of(first, (firsts.tensor - window + 1).clamp(min=0))


def _part(chunks: list[Chunk], offsets: list[int], device: torch.device, of: int) -> Part:
    slots = known([chunk.slot for chunk in chunks], device)
    lengths = known([chunk.end for chunk in chunks], device)
    if of == 1:
        return Part(slots, lengths)
    if len(chunks) == 1:
        return Span(slots, lengths, slice(offsets[0], offsets[0] + chunks[0].count))
    most = max(chunk.count for chunk in chunks)
    ends = host(offsets) + host([chunk.count for chunk in chunks])
    starts = host(offsets)[:, None]
    tokens = ends[:, None] + torch.arange(-most, 0, device="cpu")
    real = (tokens >= starts).flatten().nonzero()[:, 0]
    tokens = tokens.maximum(starts)
    firsts = known([chunk.first for chunk in chunks], device)
    return Group(slots, lengths, upload(tokens, device), upload(real, device), firsts)


def known(values: Sequence[int], device: torch.device) -> KnownIndices:
    """Return ``values`` for kernels that read them on the host and on ``device`` alike."""
    return KnownIndices.of(values, upload(values, device))


def host(values: Sequence[int] | Tensor) -> Tensor:
    """Return ``values`` as an int64 tensor on the host, whatever torch's default device is."""
    return torch.as_tensor(values, dtype=torch.long, device="cpu")


def upload(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Return ``values`` as an int64 tensor on ``device``, without waiting for the device."""
    tensor = host(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
