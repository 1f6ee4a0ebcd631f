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
from pyvattn.integrations.vllm.swap_books import Orders, SwapBooks

__all__ = ["SwapConnector"]


@dataclass
class _Orders(Orders, KVConnectorMetadata):  # type: ignore[misc]
    """As they travel to workers."""


@dataclass
class _Answers(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Which requests a worker has saved, and which it could not."""

    saved: dict[str, bool] = field(default_factory=dict)

    def aggregate(self, other: _Answers) -> _Answers:
        """Return what all workers say: each has a part of every token."""
        both = self.saved.keys() | other.saved.keys()
        return _Answers(
            {each: self.saved.get(each, True) and other.saved.get(each, True) for each in both}
        )


class SwapConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Both halves, as vLLM wants it; each object is one of them."""

    # What is lost is computed anew, so vLLM need not deliver what a step still computes.
    requires_kv_delivery = False

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._rows: HostRows | None = None
        self._saved: dict[str, bool] = {}
        self._failed_blocks: set[int] = set()
        if role is KVConnectorRole.SCHEDULER:
            # The scheduler reads these next. What cannot be copied back is computed. Consumers
            # get no block that a step under way may write: copies here come behind it in the
            # stream, and a request that is not let go of at once loses its row in runner V1.
            vllm_config.kv_transfer_config.kv_load_failure_policy = "recompute"
            vllm_config.kv_transfer_config.kv_role = "kv_producer"
            (group,) = kv_cache_config.kv_cache_groups
            self._books = SwapBooks(group.kv_cache_spec.block_size)

    # The worker's half.

    def use_rows(self, rows: HostRows, row_of: Callable[[str], int | None]) -> None:
        """Begin with a worker's rows; ``row_of`` says which one a request has."""
        self._rows, self._row_of = rows, row_of

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
            row = self._row_of(request_id)
            self._saved[request_id] = self._rows.save(request_id, row, tokens)
        # vLLM calls this again, where our runner has before requests lose their rows.
        orders.drops, orders.saves = [], []

    def start_load_kv(self, forward_context: Any, **options: Any) -> None:
        """Copy back what the step reads, in front of its kernels."""
        assert self._rows is not None
        for load in self._get_connector_metadata().loads:
            row = self._row_of(load.request_id)
            if not self._rows.load(load.request_id, row, load.first, load.end):
                self._failed_blocks.update(load.blocks)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: the copies come first in the stream."""

    def save_kv_layer(self, *arguments: Any, **options: Any) -> None:
        """Nothing: only what is preempted is saved."""

    def wait_for_save(self) -> None:
        """Nothing: what overwrites the rows comes later in the stream."""

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that could not be copied back since the last call."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def build_connector_worker_meta(self) -> _Answers | None:
        """Return what was saved since the last call, and what could not be."""
        saved, self._saved = self._saved, {}
        return _Answers(saved) if saved else None

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
        orders = self._books.orders(scheduler_output)
        return _Orders(orders.saves, orders.loads, orders.drops)

    def update_connector_output(self, connector_output: Any) -> None:
        """Learn what workers have saved."""
        if isinstance(connector_output.kv_connector_worker_meta, _Answers):
            self._books.answered(connector_output.kv_connector_worker_meta.saved)

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
