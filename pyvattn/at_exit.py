"""The end of the process: caches that are still open refuse calls and end their threads."""

from __future__ import annotations

import atexit
import warnings
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pyvattn import _native
from pyvattn.units import format_size

if TYPE_CHECKING:
    from pyvattn.cache import KVCache

_caches: WeakKeyDictionary[KVCache, _native.Cache] = WeakKeyDictionary()


def retire_at_exit(cache: KVCache, native: _native.Cache) -> None:
    """Retire ``cache`` at the end of the process, unless it was closed or is gone by then."""
    _caches[cache] = native


@atexit.register
def _retire_all() -> None:
    """Keep daemon threads from meeting a core whose process is half gone.

    Their next call ends them quietly. Memory stays where it is until the process is gone,
    because they may be writing to tensors.
    """
    _native.begin_exit()
    left = [(cache, native) for cache, native in list(_caches.items()) if is_left_open(native)]
    texts = [left_open_text(cache) for cache, _ in left]
    for _, native in left:
        native.retire()
    for (cache, _), text in zip(left, texts, strict=True):
        warnings.warn(text, ResourceWarning, source=cache, stacklevel=2)


def is_left_open(native: _native.Cache) -> bool:
    """Whether nobody closed it in this process, which opened it."""
    return not native.closed and not native.inherited


def left_open_text(cache: KVCache) -> str:
    """Return what a ResourceWarning says of a cache that was not closed."""
    held = format_size(cache.stats().bytes_allocated)
    return f"{cache!r} was not closed and held {held}: use it in a with statement"
