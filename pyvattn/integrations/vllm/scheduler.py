# SPDX-License-Identifier: Apache-2.0
"""vLLM's schedulers, with blocks allocated as far ahead as kernels read past a length.

FlashAttention reads whole tiles of contiguous rows. On ``cumem`` and ``stock-uvm`` a mapping
cannot be replaced without a moment in which a read faults, and with async scheduling a kernel
is always in flight: so what a kernel may read must be mapped, and stay, before it is launched.
"""

from __future__ import annotations

from typing import Any

__all__ = ["GUARD_TOKENS", "make_scheduler", "make_sync_scheduler"]

# What FlashAttention-3 reads past a length, at most: see docs/gpu.md.
GUARD_TOKENS = 192


def make_scheduler() -> type:
    """Return the class for async scheduling, which is vLLM's default."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    return _with_guard(AsyncScheduler)


def make_sync_scheduler() -> type:
    """Return the class for ``--no-async-scheduling``."""
    from vllm.v1.core.sched.scheduler import Scheduler

    return _with_guard(Scheduler)


def _with_guard(base: Any) -> type:
    class GuardScheduler(base):  # type: ignore[misc]
        """Allocates blocks for :data:`GUARD_TOKENS` tokens past every length."""

        pyvattn_guard_tokens = GUARD_TOKENS

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.num_lookahead_tokens += GUARD_TOKENS

    GuardScheduler.__name__ = GuardScheduler.__qualname__ = f"Guard{base.__name__}"
    return GuardScheduler
