# SPDX-License-Identifier: Apache-2.0
"""Real vLLM with ``--attention-backend CUSTOM``: kernels that have no block table."""

from __future__ import annotations

import pytest
from engines import WORKER, count_calls, engine, prompts, run

from pyvattn import UnsupportedError
from pyvattn.attention import FlexKernel

# Named to vLLM as test_vllm_custom:CAUSAL and the like.
CAUSAL = FlexKernel("as-sdpa")
LOCAL = FlexKernel("near-by-and-first", mask_mod=lambda b, h, q, k: (q - k < 16) | (k < 4))
CUSTOM = {"worker_cls": WORKER, "attention_backend": "CUSTOM"}


def by_kernel(name):
    """The plug-in's options with a kernel of this module."""
    return {"pyvattn": {"kernel": f"test_vllm_custom:{name}"}}


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
        run(tiny_llama, 4, **CUSTOM, additional_config=by_kernel(kernel))
        for kernel in ("CAUSAL", "LOCAL")
    )
    assert causal.tokens == [tokens[:4] for tokens in stock.tokens]
    assert local.tokens != causal.tokens


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_mask_is_one_call_a_layer_for_all_requests(tiny_llama, monkeypatch):
    """Of prompts too: they are short. Memory is scarce, so that some are preempted."""
    pytest.importorskip("vllm")
    from vllm import SamplingParams

    from pyvattn.attention import flex
    from pyvattn.integrations.vllm.attention_backend import RowBatchBuilder

    sampling = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    # A block each at first, and then a second.
    wanted = [{"prompt_token_ids": ids[:100]} for ids in prompts()[:6]]
    told = []
    for options in ({}, {**CUSTOM, "additional_config": by_kernel("CAUSAL")}):
        with engine(tiny_llama, num_gpu_blocks_override=9, **options) as llm:
            scheduler = llm.llm_engine.engine_core.engine_core.scheduler
            preempted = count_calls(scheduler, "_preempt_request")
            steps = counted(monkeypatch, RowBatchBuilder, "build")
            together = counted(monkeypatch, flex, "attend_tiles")
            alone = counted(monkeypatch, FlexKernel, "_attend")
            outputs = llm.generate(wanted, sampling, use_tqdm=False)
            layers = llm.llm_engine.model_config.hf_config.num_hidden_layers
            told.append([list(output.outputs[0].token_ids) for output in outputs])
    assert told[0] == told[1]
    assert preempted
    assert len(together) == layers * len(steps) > 0
    assert not alone


def counted(monkeypatch, owner, name):
    """Return a list that grows by one with each call of what ``owner`` has under ``name``."""
    calls = []
    original = getattr(owner, name)

    def call(*arguments, **options):
        calls.append(name)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"alibi_slopes": [1.0]}, "does not do ALiBi: leave it out"),
        ({"sliding_window": 16, "logits_soft_cap": 5.0}, "sliding windows, a soft cap on logits"),
        ({"sinks": [1.0]}, "attention sinks"),
        ({"attn_type": "encoder"}, "attention of the type encoder"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
    ],
)
def test_what_these_kernels_do_not_do_is_refused_by_name(asked, message):
    pytest.importorskip("vllm")
    from pyvattn.integrations.vllm.attention_backend import RowAttention

    with pytest.raises(UnsupportedError, match=message):
        RowAttention(4, 64, 0.125, 2, **asked)
