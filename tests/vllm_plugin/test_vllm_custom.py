# SPDX-License-Identifier: Apache-2.0
"""Real vLLM with ``--attention-backend CUSTOM``: kernels that have no block table."""

from __future__ import annotations

import pytest
from engines import WORKER, run

from pyvattn import UnsupportedError
from pyvattn.attention import FlexKernel

# Named to vLLM as test_vllm_custom:CAUSAL and the like.
CAUSAL = FlexKernel("as-sdpa")
LOCAL = FlexKernel("near-by-and-first", mask_mod=lambda b, h, q, k: (q - k < 16) | (k < 4))
CUSTOM = {"worker_cls": WORKER, "attention_backend": "CUSTOM"}


@pytest.fixture(scope="module")
def stock(tiny_llama):
    return run(tiny_llama)


def test_rows_without_a_block_table_give_stocks_tokens(tiny_llama, stock):
    ours = run(tiny_llama, **CUSTOM)
    assert ours.tokens == stock.tokens
    assert ours.cached == stock.cached > 0


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_kernel_of_the_users_with_a_mask_that_no_paged_kernel_has(tiny_llama, stock):
    causal, local = (
        run(tiny_llama, 4, **CUSTOM, additional_config={"pyvattn": {"kernel": kernel}})
        for kernel in ("test_vllm_custom:CAUSAL", "test_vllm_custom:LOCAL")
    )
    assert causal.tokens == [tokens[:4] for tokens in stock.tokens]
    assert local.tokens != causal.tokens


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"alibi_slopes": [1.0]}, "does not do ALiBi: leave it out"),
        ({"sinks": [1.0], "logits_soft_cap": 5.0}, "a soft cap on logits, attention sinks"),
        ({"attn_type": "encoder"}, "attention of the type encoder"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
    ],
)
def test_what_these_kernels_do_not_do_is_refused_by_name(asked, message):
    pytest.importorskip("vllm")
    from pyvattn.integrations.vllm.attention_backend import RowAttention

    with pytest.raises(UnsupportedError, match=message):
        RowAttention(4, 64, 0.125, 2, **asked)
