# SPDX-License-Identifier: Apache-2.0
"""What vLLM's OffloadingConnector lacks on a CPU: copies of KV to host memory.

Both halves of the connector are vLLM's, and its books of the host's blocks. vLLM finds this module
by ``spec_module_path``. A copy is made when its end is asked for, one in each step, since on a GPU
they run beside the steps that follow.
"""

from __future__ import annotations

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

# Of all workers of this process: bytes of KV that went to the host, and that came back.
COPIED = {"stored": 0, "loaded": 0}


class HostOffloadingSpec(CPUOffloadingSpec):
    """``CPUOffloadingSpec``, whose worker wants a GPU."""

    def get_worker(self, kv_caches):
        """Return one that copies by itself."""
        assert self.blocks_per_chunk == 1
        return _Worker([each.tensor for each in kv_caches.tensors], self.num_chunks)


class _Worker(OffloadingWorker):
    """Copies blocks of ``[blocks, bytes]`` tensors, by their ids."""

    def __init__(self, tensors, chunks):
        self._tensors = tensors
        self._host = [torch.zeros(chunks, *each.shape[1:], dtype=each.dtype) for each in tensors]
        self._waiting = {}

    def submit_store(self, job_id, src_spec, dst_spec):
        pairs = list(zip(self._tensors, self._host, strict=True))
        self._waiting[job_id] = ("stored", pairs, src_spec.block_ids, dst_spec.block_ids)
        return True

    def submit_load(self, job_id, src_spec, dst_spec):
        pairs = list(zip(self._host, self._tensors, strict=True))
        self._waiting[job_id] = ("loaded", pairs, src_spec.block_ids, dst_spec.block_ids)
        return True

    def get_finished(self):
        return [self._finish(job) for job in list(self._waiting)[:1]]

    def wait(self, job_ids):
        for job in job_ids & self._waiting.keys():
            direction, pairs, sources, targets = self._waiting[job]
            self._copy(direction, pairs, sources, targets)
            self._waiting[job] = (direction, [], sources, targets)

    def _finish(self, job):
        self._copy(*self._waiting.pop(job))
        return TransferResult(job_id=job, success=True)

    def _copy(self, direction, pairs, sources, targets):
        for source, target in pairs:
            target[torch.from_numpy(targets)] = source[torch.from_numpy(sources)]
            COPIED[direction] += len(sources) * source.shape[1]
