# SPDX-License-Identifier: Apache-2.0
"""vLLM's sleep mode for KV memory alone: ``--sleep-mode-backend pyvattn``, from vLLM 0.33 on.

vLLM loads this module by its name, and it needs vLLM.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from vllm.device_allocator.sleep_mode_backend import SleepModeBackend

from pyvattn.errors import UnsupportedError

__all__ = ["KVSleepBackend"]

_KV = "kv_cache"


class Sleeper(Protocol):
    """KV memory that can be given back and taken again, each as often as one likes."""

    def sleep(self) -> None:
        """Give back what no live request has."""

    def wake(self) -> None:
        """Take memory again as requests need it."""


class KVSleepBackend(SleepModeBackend):  # type: ignore[misc]
    """Gives KV memory back in the time of the unmaps, and leaves weights on the device.

    At level 2 too: weights that vLLM may load again lie where they are.
    """

    _memory: Sleeper | None = None

    def adopt(self, memory: Sleeper) -> None:
        """Take what the worker keeps KV in."""
        self._memory = memory

    def suspend(self, level: int = 1) -> None:
        """Give the KV memory back."""
        self._sleeper().sleep()
        self._state = "SUSPENDED"

    def resume(self, tags: Collection[str] | None = None) -> None:
        """Take KV memory again, as requests need it; nothing where ``tags`` leave it out."""
        if tags is None or _KV in tags:
            self._sleeper().wake()
            self._state = "RUNNING"

    def discard(self, tags: Collection[str]) -> None:
        """Give the KV memory back; raises what vLLM expects for any other tag."""
        if set(tags) != {_KV}:
            raise RuntimeError(
                f"sleep-mode backend pyvattn discards {_KV} alone, not {', '.join(tags)}: use cumem"
            )
        self.suspend()

    @classmethod
    def preserves_communicators(cls) -> bool:
        """Nothing but KV memory is touched."""
        return True

    @classmethod
    def preserves_compiled_artifacts(cls) -> bool:
        """Nothing but KV memory is touched."""
        return True

    @classmethod
    def preserves_graphs_with_communicators(cls) -> bool:
        """Rows keep their addresses."""
        return True

    def _sleeper(self) -> Sleeper:
        if self._memory is None:
            raise UnsupportedError(
                "sleep-mode backend pyvattn puts away the KV memory of --worker-cls "
                "pyvattn.vllm.Worker: add that, or use cumem"
            )
        return self._memory
