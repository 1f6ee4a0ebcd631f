# SPDX-License-Identifier: Apache-2.0
"""The KV memory of a worker under a lease: ids of vLLM's get memory and give it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from pyvattn import _native
from pyvattn.budget import Budget
from pyvattn.errors import BlockError, ConfigError, LedgerLost, OutOfMemory
from pyvattn.integrations.vllm.layout import Paging
from pyvattn.integrations.vllm.memory import NULL_BLOCK, RowMemory, Sizes
from pyvattn.shared import SharedMemory, own_limit
from pyvattn.units import format_size

__all__ = ["SharedRowMemory"]

# How long an engine that begins waits for its first block.
_START_S = 60.0


class SharedRowMemory(RowMemory):
    """Only ids that were backed have memory: one block of ours each, leased before it is taken.

    :meth:`back`, :meth:`unback` and :meth:`settle` are the scheduler's, which lives in the same
    process and calls them between steps.
    """

    # Any block that comes free is memory for a neighbour.
    _slab_blocks = 1

    def __init__(
        self,
        sizes: Sizes,
        paging: Paging,
        driver: _native.Driver,
        *,
        background: bool,
        lease: SharedMemory,
    ) -> None:
        self.lease = lease
        self.block_bytes = sizes.layers // paging.layers_per_arena * paging.page_size
        self._check_length(sizes)
        super().__init__(sizes, paging, driver, background=background)
        self._backed = {NULL_BLOCK: self._blocks[NULL_BLOCK]}
        self._backs_what_is_asked = False
        # What an operator lets it hold; None while it is awake.
        self._limit_awake: int | None = None
        # The scheduler's part of giving.
        self.give: Callable[[], None] = self.settle

    def back(self, ids: Sequence[int]) -> bool:
        """Take memory for all of these ids, or for none where the lease does not grant it."""
        try:
            blocks = self.pool.allocate(len(ids))
        except (OutOfMemory, LedgerLost):
            return False
        self._backed.update(zip(ids, blocks, strict=True))
        return True

    def unback(self, ids: Sequence[int]) -> None:
        """Let go of the memory of ids that no request has.

        Rows that still map a block hold it, until kernels that may read there have passed.
        """
        self.pool.release([self._backed.pop(id_) for id_ in ids])

    def unused_blocks(self) -> int:
        """Return how many blocks can go back, now or when their rows are closed, but no id has."""
        return self.pool.stats().blocks_allocated - len(self._backed)

    def over_blocks(self) -> int:
        """Return how many blocks neighbours ask for, beyond what is on its way to them."""
        over = self.lease.held - self.lease.limit
        return max(0, -(-over // self.block_bytes) - self.unused_blocks()) if over > 0 else 0

    def settle(self) -> None:
        """Give back what neighbours ask for and no id has, once no row maps it."""
        over = self.lease.held - self.lease.limit
        if over <= 0 or not self.unused_blocks():
            return
        lacking = -(-over // self.block_bytes) - self.pool.stats().blocks_free
        if lacking > 0:
            # Rows that were closed in the last step before the engine became idle are still staged.
            self.rows.flush()
            self.rows.reclaim(lacking)
        self.pool.give_back()

    def sleep(self) -> None:
        """Keep one chunk and what live requests have, and leave the guarantee to others."""
        if self._limit_awake is None:
            self._limit_awake = own_limit(self.lease)
        self._keep(0, self.lease.weights)
        self.give()

    def wake(self) -> None:
        """Take memory again, as requests need it."""
        if self._limit_awake is not None:
            self.lease.set_limit(self._limit_awake)
            self._limit_awake = None

    def return_weights(self) -> None:
        """Leave the memory of weights, which must be free, to others: before :meth:`sleep`."""
        self.lease.return_weights()

    def claim_weights(self, timeout: float) -> None:
        """Lease memory for weights before they come back, within ``timeout`` seconds.

        Raises :class:`~pyvattn.errors.OutOfMemory` where neighbours do not make room; then
        nothing has changed.
        """
        if self._limit_awake is not None:
            self._keep(self.lease.held - self.lease.weights, self.lease.weights_size)
        try:
            self.lease.claim_weights(timeout)
        except OutOfMemory:
            if self._limit_awake is not None:
                self._keep(0, self.lease.weights)
            raise

    def _keep(self, memory: int, weights: int) -> None:
        """Let others have what is beyond these, and one block at least, guaranteed or not."""
        chunk = self.lease.chunk_bytes
        self.lease.set_limit(-(-(max(memory, self.block_bytes) + weights) // chunk) * chunk)

    @contextmanager
    def guarded(self, tokens: int) -> Iterator[None]:
        """Meanwhile back whatever is asked for, too: no scheduler has seen to it."""
        self._backs_what_is_asked = True
        try:
            with super().guarded(tokens):
                yield
        finally:
            self._backs_what_is_asked = False
            self.unback([id_ for id_ in self._backed if id_ != NULL_BLOCK])

    def close_all(self) -> None:
        """Give the KV memory back, and leave the ledger.

        Where weights are leased they are there still: the lease ends with its worker.
        """
        super().close_all()
        if not self.lease.weights:
            with suppress(LedgerLost):
                self.lease.close()

    def _named(self, blocks: list[int]) -> list[int]:
        if self._backs_what_is_asked:
            self._back_all(blocks)
        try:
            return [self._backed[block] for block in blocks]
        except KeyError as error:
            raise BlockError(f"block {error} of vLLM's has no memory: it was given away") from None

    def _back_all(self, blocks: list[int]) -> None:
        new = [block for block in dict.fromkeys(blocks) if block not in self._backed]
        if new:
            self._backed.update(zip(new, self.pool.allocate(len(new)), strict=True))

    def _budget(self, memory: int) -> Budget:
        return self.lease

    def _blocks_at_first(self) -> int:
        # Neighbours may have to end requests for it. Where they do not, allocate() says so.
        self.lease.wait_for(self.block_bytes, _START_S)
        return 1  # the null block

    def _check_length(self, sizes: Sizes) -> None:
        length = sizes.max_blocks * sizes.block_size
        needed = (sizes.max_blocks + 1) * self.block_bytes
        reach = self.lease.reach
        if needed > reach:
            raise ConfigError(
                f"a request of {length} tokens takes {format_size(needed)}, and this engine can "
                f"come to hold {format_size(reach)} beside the guarantees of others: lower one of "
                "them or --max-model-len, or raise the budget"
            )

    def _touch_blocks(self) -> None:
        """There are none yet."""
