# SPDX-License-Identifier: Apache-2.0
"""``PyvattnSwapConnector``: preempted requests go to host memory and come back.

vLLM computes what it preempted anew. Through its own interface for KV connectors, which are a
scheduler's half and a worker's, this one copies the rows instead. vLLM loads this module by its
name, and it needs vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)

from pyvattn.errors import UnsupportedError
from pyvattn.integrations.vllm.host_rows import HostRows
from pyvattn.integrations.vllm.options import Options
from pyvattn.integrations.vllm.swap_books import Load, Orders, SwapBooks
from pyvattn.integrations.vllm.swap_rates import Rates, StepClock
from pyvattn.units import parse_size

__all__ = ["SwapConnector"]


@dataclass
class _Orders(Orders, KVConnectorMetadata):  # type: ignore[misc]
    """As they travel to workers."""


@dataclass
class _Answers(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Which requests a worker could not save, and what a token takes as far as it knows."""

    lost: set[str] = field(default_factory=set)
    rates: Rates = field(default_factory=Rates)

    def aggregate(self, other: _Answers) -> _Answers:
        """Return what all workers say: each has a part of every token."""
        return _Answers(self.lost | other.lost, self.rates.slower(other.rates))


class SwapConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Both halves, as vLLM wants it; each object is one of them."""

    # What is lost is computed anew, so vLLM need not deliver what a step still computes.
    requires_kv_delivery = False

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._rows: HostRows | None = None
        self._lost: set[str] = set()
        self._failed_blocks: set[int] = set()
        self._is_async = bool(vllm_config.scheduler_config.async_scheduling)
        if role is KVConnectorRole.SCHEDULER:
            # The scheduler reads these next. What cannot be copied back is computed. Consumers
            # get no block that a step under way may write: copies here come behind it in the
            # stream, and a request that is not let go of at once loses its row in runner V1.
            vllm_config.kv_transfer_config.kv_load_failure_policy = "recompute"
            vllm_config.kv_transfer_config.kv_role = "kv_producer"
            self._books = _books(vllm_config, kv_cache_config)
            self._is_weighed = Options.of(vllm_config.additional_config).swap == "auto"
            self._rates = Rates()

    # The worker's half.

    def use_rows(
        self, rows: HostRows, row_of: Callable[[str], int | None], clock: StepClock
    ) -> None:
        """Begin with a worker's rows; ``row_of`` says which one a request has.

        ``clock`` times the steps of its device.
        """
        self._rows, self._row_of, self._clock = rows, row_of, clock

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Raise :class:`~pyvattn.errors.UnsupportedError` where the worker has no rows."""
        if self._rows is None:
            raise UnsupportedError(
                "PyvattnSwapConnector copies rows: add --worker-cls pyvattn.vllm.Worker"
            )

    def handle_preemptions(self, kv_connector_metadata: _Orders) -> None:
        """Save what is preempted, before its blocks are another request's."""
        assert self._rows is not None
        orders = kv_connector_metadata
        for request_id in orders.drops:
            self._rows.drop(request_id)
        for request_id, tokens in orders.saves:
            if not self._rows.save(request_id, self._row_of(request_id), tokens):
                self._lost.add(request_id)
        self._rows.note(refused=orders.refused, cheaper=orders.cheaper)
        # vLLM calls this again, where our runner has before requests lose their rows.
        orders.drops, orders.saves, orders.refused, orders.cheaper = [], [], 0, 0

    def start_load_kv(self, forward_context: Any, **options: Any) -> None:
        """Copy back what the step reads, in front of its kernels."""
        assert self._rows is not None
        orders = self._get_connector_metadata()
        for load in orders.loads:
            row = self._row_of(load.request_id)
            if not self._rows.load(load.request_id, row, load.first, load.end):
                self._fail(load)
        self._clock.begin(orders.tokens)

    def _fail(self, load: Load) -> None:
        """Have a request computed anew whose tokens could not be copied back."""
        # The step behind this one is scheduled already: what it says of the request would count.
        if self._is_async:
            raise UnsupportedError(
                f"{load.end - load.first} tokens of a preempted request could not be copied back "
                "from host memory, and with async scheduling vLLM cannot compute them anew: add "
                "--no-async-scheduling, with which it does, or leave out the connector"
            )
        self._failed_blocks.update(load.blocks)

    def has_connector_metadata(self) -> bool:
        """Return False: then vLLM does not call this at every layer, where nothing is to do."""
        return False

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: the copies come first in the stream."""

    def save_kv_layer(self, *arguments: Any, **options: Any) -> None:
        """Nothing: only what is preempted is saved."""

    def wait_for_save(self) -> None:
        """What overwrites the rows comes later in the stream; the step is launched."""
        self._clock.end()

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that could not be copied back since the last call."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def build_connector_worker_meta(self) -> _Answers:
        """Return what could not be saved since the last call, and what a token takes."""
        assert self._rows is not None
        lost, self._lost = self._lost, set()
        # Each time: the slowest of several workers counts, so none may be missing.
        self._rows.rates = Rates(self._rows.token_seconds, self._clock.token_seconds())
        return _Answers(lost, self._rows.rates)

    def shutdown(self) -> None:
        """Let go of host memory."""
        if self._rows is not None:
            self._rows.close()

    # The scheduler's half.

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Return how many tokens come back, in the step that runs the request."""
        count = self._books.matched(request.request_id, request.num_tokens, num_computed_tokens)
        return count, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Have them loaded."""
        (ids,) = blocks.get_block_ids()
        self._books.allocated(request.request_id, ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> _Orders:
        """Return what workers do in this step."""
        is_cheaper = not self._is_weighed or self._rates.copying_is_cheaper
        orders = self._books.orders(scheduler_output, copying_is_cheaper=is_cheaper)
        return _Orders(**vars(orders))

    def update_connector_output(self, connector_output: Any) -> None:
        """Learn what workers could not save, and what a token takes them."""
        answers = connector_output.kv_connector_worker_meta
        if isinstance(answers, _Answers):
            self._books.lost(sorted(answers.lost))
            self._rates = answers.rates

    def reset_cache(self) -> bool:
        """Forget everything that was saved, and what runs now is not saved either."""
        self._books.reset()
        return True

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Let go of what was saved of it; its blocks are free at once."""
        self._books.end(request.request_id)
        return False, None


def _books(vllm_config: Any, kv_cache_config: Any) -> SwapBooks:
    """Return books of as many blocks as a worker has room for in its host memory."""
    (group,) = kv_cache_config.kv_cache_groups
    block_bytes = group.kv_cache_spec.page_size_bytes * len(group.layer_names)
    memory = parse_size(Options.of(vllm_config.additional_config).swap_memory, "swap_memory")
    return SwapBooks(group.kv_cache_spec.block_size, memory // block_bytes)
