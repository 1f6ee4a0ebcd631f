# SPDX-License-Identifier: Apache-2.0
"""A vLLM engine as a member of a ledger: how it joins, and where its scheduler finds the memory."""

from __future__ import annotations

import os
from typing import Any

from pyvattn.errors import ConfigError, UnsupportedError
from pyvattn.integrations.vllm.options import Options
from pyvattn.integrations.vllm.shared_memory import SharedRowMemory
from pyvattn.shared import SharedMemory
from pyvattn.text import printable
from pyvattn.units import format_size

__all__ = [
    "check_sharing",
    "check_weights",
    "join_ledger",
    "memory_of",
    "offer_memory",
    "shares",
    "withdraw_memory",
]

# Of the engines of this process, by the id of their configuration.
_memories: dict[str, SharedRowMemory] = {}


def shares(config: Any) -> bool:
    """Return whether a ``VllmConfig`` asks for memory that engines share."""
    return Options.of(config.additional_config).memory == "shared"


def check_sharing(config: Any) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` where memory cannot be shared.

    Scheduler and worker must be one process: what one gives away the other must not touch.
    """
    if not shares(config):
        return
    executor = config.parallel_config.distributed_executor_backend
    if config.parallel_config.world_size != 1 or executor not in (None, "uni"):
        raise UnsupportedError(
            "pyvattn option memory='shared' is for engines of one GPU, in one process: leave out "
            "--tensor-parallel-size, --pipeline-parallel-size and --distributed-executor-backend"
        )
    if not getattr(config.scheduler_config.get_scheduler_cls(), "shares_memory", False):
        raise UnsupportedError(
            "pyvattn option memory='shared' needs a scheduler that knows what is leased: add "
            "--scheduler-cls pyvattn.vllm.Scheduler (SyncScheduler with --no-async-scheduling)"
        )


def join_ledger(config: Any, device: Any) -> SharedMemory:
    """Become a member of the ledger of a torch device; raises what :class:`SharedMemory` does."""
    options = Options.of(config.additional_config)
    return SharedMemory(
        "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}",
        budget=options.budget,
        guarantee=options.guarantee,
        weight=options.weight,
        name=_name_of(config) if options.name is None else options.name,
        weights=options.weights,
    )


def check_weights(lease: SharedMemory, model: Any) -> None:
    """Raise :class:`~pyvattn.errors.ConfigError` where a model takes more than was leased."""
    loaded = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if loaded > lease.weights:
        raise ConfigError(
            f"pyvattn option weights={format_size(lease.weights)}: the model has "
            f"{format_size(loaded)} of them, lease as much"
        )


def offer_memory(config: Any, memory: SharedRowMemory) -> None:
    """Let the engine's scheduler find it."""
    _memories[config.instance_id] = memory


def memory_of(config: Any) -> SharedRowMemory:
    """Return the memory of the engine with this configuration."""
    return _memories[config.instance_id]


def withdraw_memory(config: Any) -> None:
    """Forget it."""
    _memories.pop(config.instance_id, None)


def _name_of(config: Any) -> str:
    model = printable(os.path.basename(str(config.model_config.model).rstrip("/")))
    return model.encode()[:48].decode(errors="ignore") or "vllm"
