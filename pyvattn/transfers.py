# SPDX-License-Identifier: Apache-2.0
"""A slot's tokens from a cache in one process to one in another, with torch.distributed.

Prompts are filled in one process and decoded in another, say. A row is contiguous, so each arena is
one message, over NCCL between GPUs and over gloo between caches on the host. What is to come is
said first, and the receiver answers whether it has room, so that a slot that is refused is an
error for both and nobody waits for bytes that never come.

In one process :meth:`pyvattn.KVCache.restore` of :meth:`pyvattn.KVCache.dense_views` does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from pyvattn._native import Slot
from pyvattn.arguments import check_type
from pyvattn.cache import KVCache
from pyvattn.errors import Error, MissingDependency, TransferError
from pyvattn.nvtx import ranged
from pyvattn.swap import SlotHeader, SlotViews
from pyvattn.text import printable, shown
from pyvattn.whole_numbers import whole_number

__all__ = ["receive", "send"]

# No header or refusal is as long: whatever says so is not one of these.
_LONGEST = 1 << 20


@ranged("pyvattn.send")
def send(
    cache: KVCache, slot: Slot, to: int, *, tokens: int | None = None, group: Any = None
) -> None:
    """Send the first ``tokens`` tokens of a slot, by default all, to a rank that calls ``receive``.

    The slot stays as it is. ``to`` is a rank of the world, ``group`` the process group that both
    are in, by default that of all. Over NCCL the bytes leave on torch's stream and this returns
    before they have gone: release the slot from the same stream.

    Raises :class:`~pyvattn.errors.TransferError` where the other one refuses them, is gone, or
    says nothing for as long as the group waits; and what :meth:`pyvattn.KVCache.dense_views`
    raises, in which case the other gets a ``TransferError``.
    """
    check_type("cache", cache, KVCache)
    link = _Link(cache, to, group)
    try:
        views = cache.dense_views(slot, tokens)
    except Error as error:
        link.refuse(error)
        raise
    link.say(asdict(views.header))
    link.hear()
    link.move(views, sends=True)


@ranged("pyvattn.receive")
def receive(cache: KVCache, source: int, *, group: Any = None) -> Slot:
    """Return a new slot with the tokens that a rank sends; ``source`` is its rank in the world.

    Over NCCL they arrive on torch's stream: launch there what reads them.

    Raises :class:`~pyvattn.errors.TransferError` where the sender has none to send, is gone, or
    says nothing for as long as the group waits; and what :meth:`pyvattn.KVCache.admit_views` raises
    where they find no room or the cache has another layout, in which case the sender gets a
    ``TransferError``. Then no slot is taken.
    """
    check_type("cache", cache, KVCache)
    link = _Link(cache, source, group)
    said = link.hear()
    try:
        slot, views = cache.admit_views(_header_of(said))
    except Error as error:
        link.refuse(error)
        raise
    try:
        link.say({})
        link.move(views, sends=False)
    except BaseException:
        cache.release(slot)
        raise
    return slot


class _Link:
    """Messages between this process and one other rank."""

    def __init__(self, cache: KVCache, rank: int, group: Any) -> None:
        try:
            import torch
            from torch import distributed
        except ImportError as error:
            raise MissingDependency(
                "pyvattn.transfers moves bytes with torch.distributed: pip install 'pyvattn[torch]'"
            ) from error
        if not distributed.is_available() or not distributed.is_initialized():
            raise TransferError(
                "there is no process group: call torch.distributed.init_process_group first"
            )
        number, ranks = whole_number(rank), distributed.get_world_size()
        if number is None or not 0 <= number < ranks or number == distributed.get_rank():
            raise TransferError(
                f"rank {shown(rank)}: use another rank than this one's, from 0 to {ranks - 1}"
            )
        self._torch, self._distributed = torch, distributed
        self._rank, self._group, self._device = number, group, cache.device

    def say(self, content: dict[str, Any]) -> None:
        """Send a few words."""
        text = json.dumps(content).encode()
        with self._typed():
            self._send(self._torch.tensor([len(text)], dtype=self._torch.int64))
            self._send(self._torch.tensor(list(text), dtype=self._torch.uint8))

    def refuse(self, error: Error) -> None:
        """Say why nothing more will come, to one that may be gone."""
        with suppress(TransferError):
            self.say({"refused": str(error)})

    def hear(self) -> dict[str, Any]:
        """Return the other one's words; raises ``TransferError`` if it refuses."""
        with self._typed():
            size = int(self._receive(1, self._torch.int64)[0])
            if not 0 < size <= _LONGEST:
                raise ValueError(f"a message of {size} bytes is none of pyvattn's")
            said = json.loads(bytes(self._receive(size, self._torch.uint8).tolist()))
            if not isinstance(said, dict):
                raise ValueError(f"{said!r} is no message of pyvattn's")
        if "refused" in said:
            raise TransferError(f"rank {self._rank} refused: {printable(str(said['refused']))}")
        return said

    def move(self, views: SlotViews, *, sends: bool) -> None:
        """Send or receive every view, all of them at once."""
        call: Callable[..., Any] = self._distributed.isend if sends else self._distributed.irecv
        operations = [
            self._distributed.P2POp(call, view, self._rank, self._group)
            for view in views.views
            if len(view)
        ]
        with self._typed():
            for work in self._distributed.batch_isend_irecv(operations) if operations else ():
                work.wait()

    def _send(self, words: Any) -> None:
        self._distributed.send(words.to(self._device), self._rank, self._group)

    def _receive(self, count: int, dtype: Any) -> Any:
        words = self._torch.empty(count, dtype=dtype, device=self._device)
        self._distributed.recv(words, self._rank, self._group)
        return words

    @contextmanager
    def _typed(self) -> Iterator[None]:
        """Turn what torch.distributed raises into our error."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise TransferError(
                f"nothing more comes from or goes to rank {self._rank}: "
                f"{' '.join(printable(str(error)).split())[:200]}"
            ) from error


def _header_of(said: dict[str, Any]) -> SlotHeader:
    try:
        groups = {name: tuple(said[name]) for name in ("fronts", "token_bytes", "arenas")}
        return SlotHeader(said["length"], **groups, state_bytes=said["state_bytes"])
    except (KeyError, TypeError) as error:
        raise TransferError(f"{shown(said)} is no header of a slot") from error
