# SPDX-License-Identifier: Apache-2.0
"""The end of the process: what is still open refuses calls, and its threads end."""

from __future__ import annotations

import atexit
import warnings
from typing import Protocol
from weakref import WeakKeyDictionary

from pyvattn import _native
from pyvattn.units import format_size


class Core(Protocol):
    """The core of a cache or a block pool."""

    @property
    def closed(self) -> bool:
        """Whether it was closed, or retired."""

    @property
    def inherited(self) -> bool:
        """True in a child process that got it through fork()."""

    def retire(self) -> None:
        """Refuse further calls, and leave the memory where it is until the process is gone."""


class Holder(Protocol):
    """What owns a core."""

    def _bytes_allocated(self) -> int: ...


_open: WeakKeyDictionary[Holder, Core] = WeakKeyDictionary()


def retire_at_exit(holder: Holder, core: Core) -> None:
    """Retire ``core`` at the end of the process, unless it was closed or is gone by then."""
    _open[holder] = core


@atexit.register
def _retire_all() -> None:
    """Keep daemon threads from meeting a core whose process is half gone.

    Their next call ends them quietly. Memory stays where it is until the process is gone,
    because they may be writing to tensors.
    """
    _native.begin_exit()
    left = [(holder, core) for holder, core in list(_open.items()) if is_left_open(core)]
    texts = [left_open_text(holder, holder._bytes_allocated()) for holder, _ in left]
    for _, core in left:
        core.retire()
    for (holder, _), text in zip(left, texts, strict=True):
        warnings.warn(text, ResourceWarning, source=holder, stacklevel=2)


def is_left_open(core: Core) -> bool:
    """Whether nobody closed it in this process, which opened it."""
    return not core.closed and not core.inherited


def left_open_text(holder: object, held: int) -> str:
    """Return what a ResourceWarning says of what was not closed and held so many bytes."""
    return f"{holder!r} was not closed and held {format_size(held)}: use it in a with statement"
