# SPDX-License-Identifier: Apache-2.0
"""A KV cache for LLM inference: contiguous in virtual memory, paged in physical memory.

Names are loaded when they are first used, so that ``import pyvattn`` and the
command line answer at once and need neither the native core nor CUDA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvattn import errors
from pyvattn.errors import *  # noqa: F403 - all of them, by the names that stand there

if TYPE_CHECKING:
    from pyvattn.budget import MemoryLimit
    from pyvattn.cache import KVCache
    from pyvattn.layer_group import LayerGroup
    from pyvattn.rows import BlockPool, RowMap
    from pyvattn.shared import SharedMemory
    from pyvattn.spec import CacheSpec
    from pyvattn.state_group import StateGroup

_LAZY = {
    "BlockPool": "pyvattn.rows",
    "CacheSpec": "pyvattn.spec",
    "KVCache": "pyvattn.cache",
    "LayerGroup": "pyvattn.layer_group",
    "MemoryLimit": "pyvattn.budget",
    "RowMap": "pyvattn.rows",
    "SharedMemory": "pyvattn.shared",
    "StateGroup": "pyvattn.state_group",
}

__all__ = [
    "BlockPool",
    "CacheSpec",
    "KVCache",
    "LayerGroup",
    "MemoryLimit",
    "RowMap",
    "SharedMemory",
    "StateGroup",
]
__all__ += errors.__all__


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
