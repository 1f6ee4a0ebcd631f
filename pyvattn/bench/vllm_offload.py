# SPDX-License-Identifier: Apache-2.0
"""vLLM's own CPU offload, for ``bench offload``: the worker of its OffloadingConnector.

One of them copies a buffer's bytes to the host and back as the connector does for a request: a
copy for each block in each tensor, handed to the driver in one call.
"""

from __future__ import annotations

import random
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from pyvattn.errors import ConfigError, DriverError, MissingDependency
from pyvattn.samples import BLOCK_TOKENS

_CHUNK_TOKENS = 256


@dataclass(frozen=True)
class Setting:
    """How vLLM lays blocks out: in GPU memory, and in the chunks that it keeps on the host.

    A block has ``block_tokens`` tokens; K and V of a layer lie side by side in it, and with
    ``layers_together`` those of all layers. A chunk has ``chunk_tokens``.
    """

    name: str
    block_tokens: int = BLOCK_TOKENS
    chunk_tokens: int = BLOCK_TOKENS
    layers_together: bool = False


SETTINGS = (
    Setting("vLLM's default"),
    Setting(f"vLLM's chunks of {_CHUNK_TOKENS} tokens", chunk_tokens=_CHUNK_TOKENS),
    Setting("vLLM's blocks of 128 tokens", block_tokens=128, chunk_tokens=_CHUNK_TOKENS),
    # As vLLM 0.26 allocates for this connector with its first model runner.
    Setting("vLLM's layers together", chunk_tokens=_CHUNK_TOKENS, layers_together=True),
)


def check_tokens(tokens: int) -> None:
    """Raise :class:`~pyvattn.errors.ConfigError` unless the blocks of each setting fill them."""
    if tokens % _CHUNK_TOKENS:
        raise ConfigError(
            f"tokens={tokens}: beside vLLM, whose chunks are filled, use a multiple of "
            f"{_CHUNK_TOKENS}"
        )


def version() -> str:
    """Return vLLM's version.

    Raises :class:`~pyvattn.errors.MissingDependency` where vLLM, or the worker in it, is not.
    """
    try:
        # vLLM's log goes where standard output does when it is imported: not into the results.
        with redirect_stdout(sys.stderr):
            import vllm
            from vllm.v1.kv_offload.cpu.gpu_worker import CPUOffloadingWorker  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"the bench beside vLLM needs vLLM 0.26 or later ({error}): pip install "
            "'pyvattn[vllm]', or leave --against out"
        ) from error
    return str(vllm.__version__)


class VllmOffload:
    """vLLM's transfers of a buffer's bytes to pinned memory of its own, and back.

    ``buffer`` holds ``layers`` layers of so many tokens, as bytes on a GPU. The request's blocks
    lie in random order in it, as those of a paged cache do after a while, and its chunks one
    behind the other on the host.
    """

    def __init__(self, buffer: Any, layers: int, token_bytes: int, setting: Setting) -> None:
        from vllm.v1.kv_offload.base import (
            CanonicalKVCacheRef,
            CanonicalKVCaches,
            CanonicalKVCacheTensor,
            GPULoadStoreSpec,
        )
        from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
        from vllm.v1.kv_offload.cpu.gpu_worker import CPUOffloadingWorker

        self.bytes = buffer.numel()
        blocks = self.bytes // (setting.block_tokens * token_bytes)
        per_chunk = setting.chunk_tokens // setting.block_tokens
        tensors = 1 if setting.layers_together else layers
        page = self.bytes // blocks // tensors
        self.in_words = f"{blocks * tensors:,} copies of {page / 1024:,.0f} KiB"
        caches = CanonicalKVCaches(
            [CanonicalKVCacheTensor(view, page) for view in buffer.view(tensors, blocks, page)],
            [[CanonicalKVCacheRef(i, page) for i in range(tensors)]],
        )
        # By position: releases after 0.26 call the third another name.
        self._worker = CPUOffloadingWorker(caches, per_chunk, blocks // per_chunk)
        ids = list(range(blocks))
        random.Random(0).shuffle(ids)
        self._there = GPULoadStoreSpec(ids, [blocks], [0])
        self._here = CPULoadStoreSpec(list(range(blocks // per_chunk)))
        self._jobs = 0

    def out(self) -> None:
        """Copy everything to the host, and return once it is there."""
        self._jobs += 1
        self._worker.submit_store(self._jobs, self._there, self._here)
        self._finish()

    def back(self) -> None:
        """Copy everything back, and return once it is there."""
        self._jobs += 1
        self._worker.submit_load(self._jobs, self._here, self._there)
        self._finish()

    def close(self) -> None:
        """Let go of the host's memory."""
        self._worker.shutdown()

    def _finish(self) -> None:
        self._worker.wait({self._jobs})
        done = self._worker.get_finished()
        moved = [(one.job_id, one.success, one.transfer_size) for one in done]
        if moved != [(self._jobs, True, self.bytes)]:
            raise DriverError(
                f"vLLM was asked to move {self.bytes} bytes and says {moved}",
                operation="transfer", status="incomplete",
            )  # fmt: skip
