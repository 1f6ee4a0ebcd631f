# SPDX-License-Identifier: Apache-2.0
"""Runs the requests of a trace through allocators, without a model and without memory.

The contiguous cache is the real one in accounting mode; beside it stand static
allocation and 16-token paged allocation. See :func:`replay` for one run.
"""

from pyvattn.replay.allocator import Allocator, PagedAllocator, StaticAllocator
from pyvattn.replay.contiguous import ContiguousAllocator
from pyvattn.replay.result import Result
from pyvattn.replay.scheduler import replay

__all__ = [
    "Allocator",
    "ContiguousAllocator",
    "PagedAllocator",
    "Result",
    "StaticAllocator",
    "replay",
]
