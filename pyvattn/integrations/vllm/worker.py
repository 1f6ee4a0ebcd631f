# SPDX-License-Identifier: Apache-2.0
"""The worker class: ``--worker-cls pyvattn.vllm.Worker``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pyvattn import _native
from pyvattn.integrations.vllm import BACKEND, FLASH_BACKEND, SLEEP_BACKEND
from pyvattn.integrations.vllm.kernel_choice import (
    attends_by_flash_rows,
    check_guard,
    guard_tokens,
)
from pyvattn.integrations.vllm.lease import (
    check_sharing,
    check_weights,
    join_ledger,
    shares,
    withdraw_memory,
)
from pyvattn.integrations.vllm.options import Options
from pyvattn.integrations.vllm.refusals import check_config
from pyvattn.integrations.vllm.runners import RunnerV1, RunnerV2, adopt_runner
from pyvattn.integrations.vllm.shared_memory import SharedRowMemory
from pyvattn.integrations.vllm.versions import check_version
from pyvattn.shared import SharedMemory

__all__ = ["make_worker"]

# How long an engine that wakes waits for neighbours to make room for its weights.
_WAKE_S = 60.0


class RowWorker:
    """What is mixed into vLLM's worker: its model runner keeps the KV cache in rows.

    Everything that cannot work is refused here, before memory is taken or weights are read.
    """

    # Where weights are leased: as long as they are there, which is as long as the worker.
    _lease: SharedMemory | None = None

    def __init__(self, vllm_config: Any, *arguments: Any, **options: Any) -> None:
        import vllm

        check_version(vllm.__version__)
        check_config(vllm_config)
        if not Options.of(vllm_config.additional_config).sleep_weights:
            # Before vLLM 0.33 no option of its own says so.
            vllm_config.model_config.sleep_mode_backend = SLEEP_BACKEND
        check_guard(vllm_config)
        check_sharing(vllm_config)
        super().__init__(vllm_config, *arguments, **options)  # type: ignore[call-arg]

    def init_device(self) -> None:
        """Let vLLM build its runner, and have it keep KV in rows."""
        super().init_device()  # type: ignore[misc]
        worker: Any = self
        mixin = RunnerV2 if worker.use_v2_model_runner else RunnerV1
        adopt_runner(worker.model_runner, mixin, self.make_driver)

    def determine_available_memory(self) -> int:
        """Return what vLLM found, or all that engines share: what is leased of it changes."""
        available: int = super().determine_available_memory()  # type: ignore[misc]
        worker: Any = self
        if not shares(worker.vllm_config):
            return available
        # What vLLM measures with is no member's yet: only from here on the runner knows the lease.
        lease = self._lease or join_ledger(worker.vllm_config, worker.model_runner.device)
        worker.model_runner.pyvattn_lease = lease
        return lease.budget - lease.weights

    def load_model(self, **options: Any) -> None:
        """Let vLLM build the model, whose layers choose their attention backend.

        Where its weights are to be leased, they are before.
        """
        worker: Any = self
        if Options.of(worker.vllm_config.additional_config).weights:
            self._lease = join_ledger(worker.vllm_config, worker.model_runner.device)
        with _backend_in_place(worker.vllm_config):
            super().load_model(**options)  # type: ignore[misc]
        if self._lease is not None:
            check_weights(self._lease, worker.get_model())

    def compile_or_warm_up_model(self) -> Any:
        """Let vLLM run requests that no scheduler made, with blocks behind them to be read."""
        worker: Any = self
        memory = worker.model_runner.pyvattn_memory
        with memory.guarded(guard_tokens(worker.vllm_config)):
            return super().compile_or_warm_up_model()  # type: ignore[misc]

    @property
    def sleep_mode_backend(self) -> Any:
        """Return vLLM's; ours is told which memory it gives back."""
        return self._with_memory(super().sleep_mode_backend)  # type: ignore[misc]

    def _get_sleep_mode_backend(self) -> Any:
        """As vLLM 0.26 calls it."""
        return self._with_memory(super()._get_sleep_mode_backend())  # type: ignore[misc]

    def sleep(self, level: int = 1) -> None:
        """Let vLLM put weights away, and give back the KV memory that no live request has."""
        super().sleep(level)  # type: ignore[misc]
        memory = self.model_runner.pyvattn_memory  # type: ignore[attr-defined]
        if isinstance(memory, SharedRowMemory):
            if self._puts_weights_away():
                memory.return_weights()
            memory.sleep()

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Let vLLM fetch weights, and take KV memory again as requests need it.

        Memory for the weights is leased first: where neighbours make no room for it, the engine
        sleeps on as it was.
        """
        memory = self.model_runner.pyvattn_memory  # type: ignore[attr-defined]
        shared = memory if isinstance(memory, SharedRowMemory) else None
        if shared is not None and (tags is None or "weights" in tags):
            shared.claim_weights(_WAKE_S)
        super().wake_up(tags)  # type: ignore[misc]
        if shared is not None and (tags is None or "kv_cache" in tags):
            shared.wake()

    def shutdown(self) -> None:
        """Let vLLM shut down, and give the KV memory back."""
        super().shutdown()  # type: ignore[misc]
        runner = getattr(self, "model_runner", None)
        memory = getattr(runner, "pyvattn_memory", None)
        withdraw_memory(self.vllm_config)  # type: ignore[attr-defined]
        if memory is not None:
            memory.close_all()

    def make_driver(self, name: str, page_size: int, device: int) -> _native.Driver:
        """Open the driver of the rows. A subclass may wrap it in adaptors."""
        return _native.make_driver(name, page_size, device)

    def _with_memory(self, backend: Any) -> Any:
        if hasattr(backend, "adopt"):
            backend.adopt(self.model_runner.pyvattn_memory)  # type: ignore[attr-defined]
        return backend

    def _puts_weights_away(self) -> bool:
        """Return whether vLLM's sleep frees the memory of weights: on a CPU it does nothing."""
        worker: Any = self
        keeps = worker.vllm_config.model_config.sleep_mode_backend == SLEEP_BACKEND
        return not keeps and worker.model_runner.device.type != "cpu"

    def pyvattn_stats(self) -> dict[str, int | float]:
        """Count, for ``LLM.collective_rpc("pyvattn_stats")``.

        See ``RowMemory.stats``, and where preempted requests are swapped ``HostRows.stats``.
        """
        worker: Any = self
        counted: dict[str, int | float] = worker.model_runner.pyvattn_memory.stats()
        swap = worker.model_runner.pyvattn_host_rows
        return counted if swap is None else {**counted, **swap.stats()}

    def pyvattn_reset_stats(self) -> None:
        """Count from here on."""
        worker: Any = self
        worker.model_runner.pyvattn_memory.reset_stats()
        if worker.model_runner.pyvattn_host_rows is not None:
            worker.model_runner.pyvattn_host_rows.reset_stats()


@contextmanager
def _backend_in_place(config: Any) -> Iterator[None]:
    """Have ``--attention-backend CUSTOM`` mean the kernel that runs here.

    vLLM's CPU platform takes CPU_ATTN whatever is asked for, which may be overridden.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if config.attention_config.backend is not AttentionBackendEnum.CUSTOM:
        yield
    elif current_platform.is_cpu():
        register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
        try:
            yield
        finally:
            AttentionBackendEnum.CPU_ATTN.clear_override()
    else:
        flash = attends_by_flash_rows(config)
        register_backend(AttentionBackendEnum.CUSTOM, FLASH_BACKEND if flash else BACKEND)
        yield


def make_worker() -> type:
    """Return the worker for the platform that vLLM runs on: a CUDA GPU, or a CPU."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        module, name = "vllm.v1.worker.cpu_worker", "CPUWorker"
    else:
        module, name = "vllm.v1.worker.gpu_worker", "Worker"
    base = getattr(import_module(module), name)
    return type("Worker", (RowWorker, base), {"__module__": "pyvattn.vllm"})
