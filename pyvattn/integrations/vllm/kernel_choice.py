# SPDX-License-Identifier: Apache-2.0
"""Which kernel ``--attention-backend CUSTOM`` runs, and how far past a length it reads.

The worker and the scheduler, which are processes of their own, both ask here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pyvattn.errors import UnsupportedError
from pyvattn.integrations.vllm.options import Options
from pyvattn.kernels import kernel_named

__all__ = ["attends_by_flash_rows", "check_guard", "guard_tokens", "reads_by_table"]

_FLASH, _FLASH_BY_TABLE = "flash-attn-3", "flash-attn-3-paged"


def attends_by_flash_rows(config: Any) -> bool:
    """Return whether a ``VllmConfig`` asks for vLLM's FlashAttention-3 over rows.

    Where vLLM has it, on Hopper, ``kernel="auto"`` means the one without a block table.
    """
    backend = getattr(config.attention_config.backend, "name", None)
    return (
        backend == "CUSTOM"
        and _flash_kernel(config) in (_FLASH, _FLASH_BY_TABLE)
        and _vllm_runs_flash_3()
    )


def reads_by_table(config: Any) -> bool:
    """Return whether that FlashAttention-3 is told by a table where the blocks of a row lie.

    Then it reads nothing past a length.
    """
    return _flash_kernel(config) == _FLASH_BY_TABLE


def _flash_kernel(config: Any) -> str:
    kernel = Options.of(config.additional_config).kernel
    return _FLASH if kernel == "auto" else kernel


def guard_tokens(config: Any) -> int:
    """Return how many tokens past every length must have blocks."""
    asked = Options.of(config.additional_config).guard_tokens
    return _needed(config) if asked is None else asked


def check_guard(config: Any) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` where nothing is mapped that a kernel reads.

    A read there ends the process, so it is refused before anything is allocated.
    """
    needed = _needed(config)
    if guard_tokens(config) < needed:
        raise UnsupportedError(
            f"pyvattn option guard_tokens={guard_tokens(config)}: FlashAttention-3 without a block "
            f"table reads up to {needed} tokens past a length; leave the option out, or set kernel "
            f"to {_FLASH_BY_TABLE}"
        )
    scheduler = config.scheduler_config.get_scheduler_cls() if needed else None
    if needed and not getattr(scheduler, "allocates_guard", False):
        raise UnsupportedError(
            "FlashAttention-3 without a block table reads past a length, where vLLM's own "
            "scheduler allocates nothing: add --scheduler-cls pyvattn.vllm.Scheduler "
            f"(SyncScheduler with --no-async-scheduling), set pyvattn option kernel to "
            f"{_FLASH_BY_TABLE}, or leave out --attention-backend CUSTOM"
        )


def _needed(config: Any) -> int:
    if not attends_by_flash_rows(config):
        return 0
    float8 = str(config.cache_config.cache_dtype).startswith("fp8")
    return kernel_named(_flash_kernel(config)).guard_for(1 if float8 else 2)


def _vllm_runs_flash_3() -> bool:
    if not import_module("vllm.platforms").current_platform.is_cuda():
        return False
    utils = import_module("vllm.v1.attention.backends.fa_utils")
    return bool(utils.get_flash_attn_version() == 3)
