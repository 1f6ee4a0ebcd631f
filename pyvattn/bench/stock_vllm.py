# SPDX-License-Identifier: Apache-2.0
"""vLLM as it comes, as the baseline of ``bench transformers``: in a process of its own."""

from __future__ import annotations

from pyvattn.bench.serving import Load, Run
from pyvattn.bench.vllm_engine import Engine, shape_of
from pyvattn.errors import ConfigError

# Of KV memory beyond what the requests fill, and the least share of the GPU that must be free.
_SPARE = 1 << 30
_FREE = 0.3


class StockVllm:
    """vLLM with its own choice of kernels, compiled, with CUDA graphs and KV for ``load``.

    Its weights are drawn as those of ``bench vllm``: they have the sizes of our model's, not the
    values. Make it before anything else takes memory on the GPU: vLLM measures what is free as it
    starts, and ends where that has changed.

    Raises :class:`~pyvattn.errors.ConfigError` for a model or device that it does not serve here,
    and :class:`~pyvattn.bench.vllm_engine.EngineFailed` where vLLM cannot start.
    """

    attention = "vLLM's own"

    def __init__(self, load: Load, *, model: str, layers: int, device: str) -> None:
        if device not in ("cuda", "cuda:0"):
            raise ConfigError(
                f"device={device!r} with against='vllm': use 'cuda:0', and for another GPU "
                "CUDA_VISIBLE_DEVICES"
            )
        if model == "tiny":  # whose shape there is another, for vLLM's kernels on a CPU
            raise ConfigError(f"model={model!r} with against='vllm': use 'llama-3-8b'")
        shape = shape_of(model)
        token = 4 * shape.kv_heads * (shape.hidden // shape.heads) * (layers or shape.layers)
        self.settings: dict[str, object] = {
            "max_model_len": load.longest,
            "max_num_seqs": max(len(load.prompts), 2),
            "kv_cache_memory_bytes": len(load.prompts) * (load.longest + 16) * token + _SPARE,
            "gpu_memory_utilization": _FREE,
        }
        self._engine = Engine("stock", model, layers, self.settings)
        try:
            self.name = f"vLLM {self._engine.wait()}"
        except BaseException:
            self._engine.close()
            raise

    def run(self, load: Load) -> Run:
        """Serve ``load``: each request is added at the time of its arrival."""
        return self._engine.run(load)

    def close(self) -> None:
        """End vLLM's process."""
        self._engine.close()
