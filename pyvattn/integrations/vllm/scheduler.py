# SPDX-License-Identifier: Apache-2.0
"""vLLM's schedulers, handing out blocks as rows want them.

Blocks come in the order of a row that has them mapped: see :mod:`.block_order`. With a guard they
are allocated as far ahead as kernels read past a length. FlashAttention reads whole tiles of
contiguous rows; on ``cumem`` and ``stock-uvm`` a mapping cannot be replaced without a moment in
which a read faults, and with async scheduling a kernel is always in flight: so what a kernel may
read must be mapped, and stay, before it is launched.
"""

from __future__ import annotations

from typing import Any

from pyvattn.integrations.vllm.block_order import order_by_rows
from pyvattn.integrations.vllm.kernel_choice import guard_tokens
from pyvattn.integrations.vllm.options import Options
from pyvattn.integrations.vllm.sharing_scheduler import SharingScheduler

__all__ = ["make_scheduler", "make_sync_scheduler"]


def make_scheduler() -> type:
    """Return the class for async scheduling, which is vLLM's default."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    return _with_rows(AsyncScheduler)


def make_sync_scheduler() -> type:
    """Return the class for ``--no-async-scheduling``."""
    from vllm.v1.core.sched.scheduler import Scheduler

    return _with_rows(Scheduler)


def _with_rows(base: Any) -> type:
    class RowScheduler(SharingScheduler, base):  # type: ignore[misc]
        """Knows which rows have which blocks mapped, and what kernels read past a length."""

        allocates_guard = True

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            ours = Options.of(self.vllm_config.additional_config)
            self.num_lookahead_tokens += guard_tokens(self.vllm_config)
            self.pyvattn_join()
            if ours.order_blocks:
                most = self.vllm_config.scheduler_config.max_num_seqs
                # Row 0 is no request's.
                order_by_rows(self.kv_cache_manager, ours.row_count(most) - 1)

    RowScheduler.__name__ = RowScheduler.__qualname__ = f"Row{base.__name__}"
    return RowScheduler
