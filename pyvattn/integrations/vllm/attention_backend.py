# SPDX-License-Identifier: Apache-2.0
"""``--attention-backend CUSTOM``: attention over rows by kernels without a block table.

vLLM loads this module by its name, and it needs vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
)

from pyvattn.attention.indices import KnownIndices
from pyvattn.integrations.vllm.options import Options
from pyvattn.integrations.vllm.row_attention import (
    Batch,
    attend,
    kernel_name,
    refuse_unsupported,
    write,
)
from pyvattn.integrations.vllm.row_layout import RowLayout, RowsOfRequests, rows_only

__all__ = ["RowAttentionBackend"]


class RowAttentionBackend(RowLayout, AttentionBackend):  # type: ignore[misc]
    """What vLLM asks of a backend before it has one."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]
    forward_includes_kv_cache_update = True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Return that kernels are told where windows begin."""
        return True

    @staticmethod
    def get_impl_cls() -> type[RowAttention]:
        """Return what attends."""
        return RowAttention

    @staticmethod
    def get_builder_cls() -> type[RowBatchBuilder]:
        """Return what prepares a step."""
        return RowBatchBuilder


@dataclass
class _Step:
    """What the layers of a step share."""

    batch: Batch
    slots: Tensor
    tokens: int


class RowBatchBuilder(AttentionMetadataBuilder):  # type: ignore[misc]
    """Turns vLLM's block table into rows: a row's blocks follow each other."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        block_tokens = kv_cache_spec.block_size
        longest = -(-vllm_config.model_config.max_model_len // block_tokens)
        windowed = getattr(kv_cache_spec, "sliding_window", None) is not None
        self._requests = RowsOfRequests(longest, block_tokens, windowed)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> _Step:
        """Return what the layers need of a batch."""
        common = common_attn_metadata
        count = common.num_reqs
        batch = Batch(
            counts=KnownIndices.of(
                common.query_start_loc_cpu[: count + 1].diff().tolist(),
                common.query_start_loc[: count + 1].diff(),
            ),
            rows=self._requests.rows(common),
            lengths=common.seq_lens[:count],
            causal=bool(common.causal),
        )
        return _Step(batch, common.slot_mapping, common.num_actual_tokens)


class RowAttention(AttentionImpl):  # type: ignore[misc]
    """One layer's attention."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        refuse_unsupported(
            {
                "ALiBi": alibi_slopes is not None,
                "a soft cap on logits": bool(logits_soft_cap),
                "attention sinks": sinks is not None,
                f"attention of the type {attn_type}": attn_type != AttentionType.DECODER,
                f"--kv-cache-dtype {kv_cache_dtype}": kv_cache_dtype.startswith("fp8"),
            }
        )
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        self._window = sliding_window
        options = Options.of(get_current_vllm_config().additional_config)
        self._kernel = kernel_name(options.kernel)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: _Step | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Write the step's K and V into the rows, and attend to them."""
        refuse_unsupported({"fused quantization of the output": output_scale is not None})
        if attn_metadata is None:
            return output.fill_(0)
        rows_only(kv_cache)
        count = attn_metadata.tokens
        write(kv_cache, key, value, attn_metadata.slots[:count])
        attend(
            output[:count].view(count, self.num_heads, self.head_size),
            query[:count].view(count, self.num_heads, self.head_size),
            kv_cache,
            attn_metadata.batch,
            self.scale,
            self._kernel,
            self._window,
        )
        return output
