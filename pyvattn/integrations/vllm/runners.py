# SPDX-License-Identifier: Apache-2.0
"""vLLM's model runners, with KV tensors in rows: what is mixed into the classes vLLM built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from importlib import import_module
from typing import Any

from pyvattn.errors import UnsupportedError
from pyvattn.integrations.vllm.build import build_memory, layer_tensors, timing_event
from pyvattn.integrations.vllm.connectors import swaps
from pyvattn.integrations.vllm.home_memory import HomeRowMemory
from pyvattn.integrations.vllm.host_rows import HostRows
from pyvattn.integrations.vllm.memory import RowMemory
from pyvattn.integrations.vllm.options import Options
from pyvattn.integrations.vllm.refusals import check_backends, check_groups, check_layers
from pyvattn.integrations.vllm.swap_rates import StepClock
from pyvattn.integrations.vllm.tables import TablesV1, TableV2, adopt_table
from pyvattn.shared import SharedMemory
from pyvattn.units import parse_size

__all__ = ["RunnerV1", "RunnerV2", "adopt_runner"]


class _Runner:
    pyvattn_memory: RowMemory | None = None
    pyvattn_make_driver: Any
    pyvattn_lease: SharedMemory | None = None
    pyvattn_host_rows: HostRows | None = None
    attn_groups: list[list[Any]]

    def _join(self) -> None:
        """Have every block mapped that kernels read which are launched from here on."""
        if self.pyvattn_memory is not None:
            self.pyvattn_memory.join()

    def _make_tensors(self, cache_config: Any, kernel_block_sizes: Any) -> dict[str, Any]:
        """Return a tensor of virtual blocks for each layer, over rows made anew."""
        specs = check_groups(cache_config, _shared_layers(self), self.pyvattn_lease is not None)
        attending = [group for groups in self.attn_groups for group in groups]
        check_backends(
            [[each.backend.get_name() for each in groups] for groups in self.attn_groups]
        )
        check_layers(cache_config, [name for group in attending for name in group.layer_names])
        sizes = [spec.block_size for spec in specs]
        if list(kernel_block_sizes) != sizes:
            raise UnsupportedError(
                f"the attention backend wants blocks of {kernel_block_sizes} tokens, not of "
                f"{sizes}: set --block-size to that"
            )
        # vLLM may have measured with a small cache before.
        if self.pyvattn_memory is not None:
            self.pyvattn_memory.close_all()
        self.pyvattn_memory = build_memory(
            self, specs, cache_config.num_blocks, self.pyvattn_make_driver, self.pyvattn_lease
        )
        return layer_tensors(self, specs, self.pyvattn_memory)

    def _offer_rows(self) -> None:
        """Let our KV connector copy rows, where the engine has it."""
        connector = _connector(self)
        if connector is None:
            return
        runner: Any = self
        assert self.pyvattn_memory is not None
        options = Options.of(runner.vllm_config.additional_config)
        limit = parse_size(options.swap_memory, "swap_memory")
        make_event = timing_event if runner.device.type == "cuda" else None
        if self.pyvattn_host_rows is not None:
            self.pyvattn_host_rows.close()
        self.pyvattn_host_rows = HostRows(self.pyvattn_memory, limit, make_event)
        connector.use_rows(self.pyvattn_host_rows, self._row_of, StepClock(make_event))

    def _registered(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return what a KV connector is told of the layers' tensors."""
        memory = self.pyvattn_memory
        return memory.by_block(tensors) if isinstance(memory, HomeRowMemory) else tensors

    def _row_of(self, req_id: str) -> int | None:
        """Return the row of a request that the runner knows."""
        raise NotImplementedError

    def _bind(self, tensors: dict[str, Any], layers: dict[str, Any], caches: list[Any]) -> None:
        utils = import_module("vllm.v1.worker.utils")
        utils.bind_kv_cache(tensors, layers, caches, 1)


class RunnerV1(_Runner):
    """``vllm.v1.worker.gpu_model_runner.GPUModelRunner``, and the CPU's."""

    def initialize_kv_cache_tensors(
        self, kv_cache_config: Any, kernel_block_sizes: Any, **options: Any
    ) -> dict[str, Any]:
        """Make the tensors, and have the block table write positions of rows."""
        runner: Any = self
        tensors = self._make_tensors(kv_cache_config, kernel_block_sizes)
        layers = runner.compilation_config.static_forward_context
        self._bind(tensors, layers, runner.kv_caches)
        assert self.pyvattn_memory is not None
        adopt_table(runner.input_batch.block_table, TablesV1, self.pyvattn_memory)
        _adopt_batch(runner.input_batch)
        self._offer_rows()
        return self._registered(tensors)

    def _model_forward(self, *arguments: Any, **options: Any) -> Any:
        """Wait for maps as late as that can be: all else of the step is prepared."""
        self._join()
        return super()._model_forward(*arguments, **options)  # type: ignore[misc]

    def _dummy_run(self, *arguments: Any, **options: Any) -> Any:
        """Wait for maps here as well, since a dummy run calls the model by itself."""
        self._join()
        return super()._dummy_run(*arguments, **options)  # type: ignore[misc]

    def _row_of(self, req_id: str) -> int | None:
        batch: Any = self.input_batch  # type: ignore[attr-defined]
        index = batch.req_id_to_index.get(req_id)
        row: int | None = None if index is None else batch.block_table.row(index)
        return row


class _Batch:
    """``vllm.v1.worker.gpu_input_batch.InputBatch``, of runner V1."""

    block_table: TablesV1

    def add_request(self, request: Any) -> Any:
        """Tell the tables of how many of its tokens a request has KV: it may have run before."""
        with self.block_table.adding([request.num_computed_tokens]):
            return super().add_request(request)  # type: ignore[misc]


class RunnerV2(_Runner):
    """``vllm.v1.worker.gpu.model_runner.GPUModelRunner``."""

    def initialize_kv_cache(self, kv_cache_config: Any, *arguments: Any, **options: Any) -> None:
        """Make the tensors where vLLM would, and have the table write positions of rows."""
        runner: Any = self
        module = import_module("vllm.v1.worker.gpu.model_runner")

        def init_kv_cache(*given: Any, **_: Any) -> dict[str, Any]:
            # vLLM 0.26 passes its list of caches, to be filled; 0.32 makes it of the result.
            caches = given[0] if isinstance(given[0], list) else []
            tensors = self._make_tensors(runner.kv_cache_config, runner.kernel_block_sizes)
            self._bind(tensors, runner.compilation_config.static_forward_context, caches)
            self._offer_rows()
            return self._registered(tensors)

        with _in_place_of(module, "init_kv_cache", init_kv_cache):
            super().initialize_kv_cache(  # type: ignore[misc]
                kv_cache_config, *arguments, **options
            )
        assert self.pyvattn_memory is not None
        adopt_table(runner.block_tables, TableV2, self.pyvattn_memory)
        runner.kv_connector = _joining(runner.kv_connector, self.pyvattn_memory)

    def add_requests(self, scheduler_output: Any) -> None:
        """Tell the table how many tokens of each new request are in the prefix cache."""
        runner: Any = self
        new = scheduler_output.scheduled_new_reqs
        with runner.block_tables.adding([each.num_computed_tokens for each in new]):
            super().add_requests(scheduler_output)  # type: ignore[misc]

    def finish_requests(self, scheduler_output: Any) -> None:
        """Have those that are preempted saved while they have their rows."""
        connector, orders = _connector(self), scheduler_output.kv_connector_metadata
        if connector is not None and orders is not None:
            connector.handle_preemptions(orders)
        super().finish_requests(scheduler_output)  # type: ignore[misc]

    def _row_of(self, req_id: str) -> int | None:
        runner: Any = self
        index = runner.req_states.req_id_to_index.get(req_id)
        row: int | None = None if index is None else runner.block_tables.row(index)
        return row

    def _remove_request(self, req_id: str) -> Any:
        """Let go of the request's row as soon as it ends, not when its index is used again."""
        runner: Any = self
        index = runner.req_states.req_id_to_index.get(req_id)
        if index is not None:
            runner.block_tables.end_request(index)
        return super()._remove_request(req_id)  # type: ignore[misc]


class _Connector:
    """``vllm.v1.worker.gpu.kv_connector.KVConnector``, the one that connects nothing."""

    _memory: RowMemory

    def pre_forward(self, *arguments: Any, **options: Any) -> None:
        """Wait for maps as late as that can be.

        vLLM calls it right before every forward: eager, of a CUDA graph, or a dummy run's.
        """
        self._memory.join()
        super().pre_forward(*arguments, **options)  # type: ignore[misc]


def adopt_runner(runner: Any, mixin: type[_Runner], make_driver: Any) -> None:
    """Make a runner that vLLM built keep its KV cache in rows."""
    built = type(runner)
    runner.__class__ = type(f"Row{built.__name__}", (mixin, built), {})
    runner.pyvattn_make_driver = make_driver


def _connector(runner: Any) -> Any:
    """Return the engine's KV connector if it is the one that swaps rows, or None."""
    if not swaps(runner.vllm_config):
        return None
    transfer = import_module("vllm.distributed.kv_transfer")
    return transfer.get_kv_transfer_group() if transfer.has_kv_transfer_group() else None


def _adopt_batch(batch: Any) -> None:
    built = type(batch)
    if not issubclass(built, _Batch):
        batch.__class__ = type(f"Row{built.__name__}", (_Batch, built), {})


def _joining(connector: Any, memory: RowMemory) -> Any:
    """Return one that waits for maps: a copy, since vLLM has one for all runners."""
    made = copy(connector)
    made.__class__ = type(f"Row{type(made).__name__}", (_Connector, type(made)), {})
    made._memory = memory
    return made


def _shared_layers(runner: Any) -> list[str]:
    layers = runner.vllm_config.compilation_config.static_forward_context
    return [
        name for name, layer in layers.items() if getattr(layer, "kv_sharing_target_layer_name", "")
    ]


@contextmanager
def _in_place_of(module: Any, name: str, value: object) -> Iterator[None]:
    """Replace one of a module's names for the length of one call."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
