# SPDX-License-Identifier: Apache-2.0
"""``--attention-backend CUSTOM`` on Hopper: vLLM's own FlashAttention-3, without its block table.

vLLM's metadata, CUDA graphs and FP8 scales are kept; K and V are ``[rows, tokens, kv_heads,
head_dim]`` with K of a token's heads before V, and the kernel is told each request's row. It reads
whole tiles: the scheduler allocates blocks that far past every length. With the kernel
``flash-attn-3-paged`` a table says where the blocks of every row lie, the same in every step, and
nothing past a length is read. vLLM loads this module by its name, and it needs vLLM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm._custom_ops import reshape_and_cache_flash
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from pyvattn.attention.flash_attn3_paged import whole_tokens
from pyvattn.attention.row_table import RowTable, block_tokens
from pyvattn.errors import UnsupportedError
from pyvattn.integrations.vllm.kernel_choice import reads_by_table
from pyvattn.integrations.vllm.row_attention import refuse_unsupported
from pyvattn.integrations.vllm.row_layout import RowLayout, RowsOfRequests, rows_only

__all__ = ["FlashRowBackend"]

_HOPPER_VERSION = 3


class FlashRowBackend(RowLayout, FlashAttentionBackend):  # type: ignore[misc]
    """vLLM's FLASH_ATTN but for the layout and the block table."""

    @staticmethod
    def get_impl_cls() -> type[FlashRowAttention]:
        """Return what attends."""
        return FlashRowAttention

    @staticmethod
    def get_builder_cls() -> type[FlashRowBuilder]:
        """Return what prepares a step."""
        return FlashRowBuilder

    @staticmethod
    def get_kv_cache_stride_order(include_num_layers_dimension: bool = False) -> tuple[int, ...]:
        """Return that blocks lie in memory as their shape says."""
        if include_num_layers_dimension:
            raise NotImplementedError("rows have a layout of their own for several layers")
        return (0, 1, 2, 3, 4)


class FlashRowBuilder(FlashAttentionMetadataBuilder):  # type: ignore[misc]
    """vLLM's metadata of a step, and the row of each request."""

    supports_update_block_table = False

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        # The kernel's own scheduler is told that there are no pages.
        self.block_size: int | None = None
        self._by_table = reads_by_table(vllm_config)
        self._page_tokens = kv_cache_spec.block_size
        self._positions = -(-vllm_config.model_config.max_model_len // self._page_tokens)
        windowed = getattr(kv_cache_spec, "sliding_window", None) is not None
        self._requests = RowsOfRequests(self._positions, self._page_tokens, windowed)
        # CUDA graphs read the rows from the same addresses in every step.
        most = max(vllm_config.scheduler_config.max_num_seqs, self.max_cudagraph_size or 0)
        self._rows = torch.zeros(most, dtype=torch.int32, device=device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        """Return what the layers need of a batch."""
        if self._by_table:
            self.block_size = self._table_block(common_attn_metadata.max_query_len)
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        metadata.table_block = self.block_size
        count = common_attn_metadata.num_reqs
        metadata.rows = self._requests.rows(common_attn_metadata, out=self._rows[:count])
        return metadata

    def _table_block(self, most_queries: int) -> int:
        """Return the tokens of the table's blocks; a block of vLLM's is a physical page."""
        queries = most_queries * (self.num_heads_q // self.num_heads_kv)
        whole = whole_tokens(queries, self._page_tokens)
        return block_tokens(self._positions * self._page_tokens, whole)

    def use_cascade_attention(self, *_: object, **__: object) -> bool:
        """Return that a common prefix is not attended to apart.

        vLLM 0.26 does so by a block table.
        """
        return False


class FlashRowAttention(FlashAttentionImpl):  # type: ignore[misc]
    """One layer's attention."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        refuse_unsupported(
            {
                "ALiBi": self.alibi_slopes is not None,
                f"attention of the type {self.attn_type}": self.attn_type != AttentionType.DECODER,
                f"FlashAttention-{self.vllm_flash_attn_version} without a block table": (
                    self.vllm_flash_attn_version != _HOPPER_VERSION
                ),
            }
        )
        self._cache: Tensor | None = None
        self._k = self._v = torch.empty(0)
        self._blocks: dict[int, tuple[RowTable, Tensor, Tensor]] = {}

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend to the rows, where the step's own K and V are already."""
        if output_scale is not None:
            refuse_unsupported({"fused quantization of the output": True})
        if attn_metadata is None:
            return output.fill_(0)
        if isinstance(attn_metadata.causal, Tensor):
            raise UnsupportedError("rows without a block table: causal must be the same for all")
        k, v, table = self._views(kv_cache, attn_metadata.table_block)
        count = attn_metadata.num_actual_tokens
        window = attn_metadata.sliding_window or self.sliding_window
        scales = (attn_metadata.query_start_loc.shape[0] - 1, self.num_kv_heads)
        torch.ops._vllm_fa3_C.fwd(
            query[:count],
            k,
            v,
            None,  # k_new
            None,  # v_new
            None,  # q_v
            output[:count],
            attn_metadata.query_start_loc,
            None,  # cu_seqlens_k
            None,  # cu_seqlens_k_new
            None,  # seqused_q
            attn_metadata.seq_lens,
            attn_metadata.max_query_len,
            None,  # max_seqlen_k: a row's, since the kernel compares it with that
            table,
            attn_metadata.rows,
            None,  # leftpad_k
            None,  # rotary_cos
            None,  # rotary_sin
            None,  # seqlens_rotary
            layer._q_scale.expand(scales) if self.supports_quant_query_input else None,
            layer._k_scale.expand(scales),
            layer._v_scale.expand(scales),
            self.scale,
            attn_metadata.causal,
            window[0],
            window[1],
            self.logits_soft_cap,
            True,  # rotary_interleaved
            attn_metadata.scheduler_metadata,
            attn_metadata.max_num_splits,
            None,  # pack_gqa
            0,  # sm_margin
            self.sinks,
            1,  # cp_world_size
            0,  # cp_rank
            None,  # cp_tot_seqused_k
        )
        return output

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write the step's K and V: to vLLM's kernel a row is a block of very many tokens."""
        rows_only(kv_cache)
        k, v = kv_cache.unbind(2)
        reshape_and_cache_flash(
            key,
            value,
            k,
            v,
            slot_mapping,
            self.kv_cache_dtype,
            layer._k_scale,
            layer._v_scale,
        )

    def _views(
        self, kv_cache: Tensor, table_block: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return K and V of the rows, or of their blocks with the table that says where they lie.

        Made once, since each view costs a step microseconds.
        """
        if self._cache is not kv_cache:
            rows_only(kv_cache)
            typed = kv_cache
            if self.kv_cache_dtype.startswith("fp8"):
                typed = kv_cache.view(torch.float8_e4m3fn)
            self._k, self._v = typed.unbind(2)
            self._blocks = {}
            self._cache = kv_cache
        if table_block is None:
            return self._k, self._v, None
        if table_block not in self._blocks:
            cut = RowTable.of(self._k, table_block)
            self._blocks[table_block] = cut, cut.view(self._k), cut.view(self._v)
        cut, k, v = self._blocks[table_block]
        return k, v, cut.table(k.device)
