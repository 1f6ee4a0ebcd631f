# SPDX-License-Identifier: Apache-2.0
"""What vLLM is told by name: ``vllm serve MODEL --worker-cls pyvattn.vllm.Worker``.

Importing this module imports nothing of vLLM; its names do, when they are first used.
docs/vllm.md has the options.
"""

from __future__ import annotations

from importlib import import_module

_MADE_BY = {
    "Worker": ("pyvattn.integrations.vllm.worker", "make_worker"),
    "Scheduler": ("pyvattn.integrations.vllm.scheduler", "make_scheduler"),
    "SyncScheduler": ("pyvattn.integrations.vllm.scheduler", "make_sync_scheduler"),
}


def __getattr__(name: str) -> object:
    if name not in _MADE_BY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, make = _MADE_BY[name]
    made = globals()[name] = getattr(import_module(module), make)()
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *_MADE_BY})
