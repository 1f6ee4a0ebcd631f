# SPDX-License-Identifier: Apache-2.0
"""The mask of ``bench vllm --flex-mask`` in real vLLM: by its own FlexAttention, and over rows."""

from __future__ import annotations

import pytest
from engines import WORKER, engine, prompts

from pyvattn.bench import vllm_mask

CUSTOM = {
    "worker_cls": WORKER,
    "attention_backend": "CUSTOM",
    "additional_config": {"pyvattn": {"kernel": "pyvattn.bench.vllm_mask:KERNEL"}},
}


@pytest.fixture
def stock_by_flex_attention(monkeypatch):
    """vLLM's CPU platform takes one backend: here its FlexAttention, without what needs a GPU."""
    backends = pytest.importorskip("vllm.v1.attention.backends.registry")
    from torch.nn.attention.flex_attention import flex_attention
    from vllm.v1.attention import selector
    from vllm.v1.attention.backends import flex_attention as module

    def attend(*arguments, kernel_options, **options):
        return flex_attention(*arguments, **options)

    def update(impl, layer, key, value, kv_cache, slot_mapping):
        k, v = kv_cache.transpose(1, 2).split(impl.head_size, dim=-1)
        block_size = k.shape[1]
        for i, slot in enumerate(slot_mapping.tolist()):
            k[slot // block_size, slot % block_size] = key[i]
            v[slot // block_size, slot % block_size] = value[i]

    monkeypatch.setattr(module, "flex_attention_compiled", attend)
    monkeypatch.setattr(module.FlexAttentionImpl, "do_kv_cache_update", update)
    cpu = backends.AttentionBackendEnum.CPU_ATTN
    backends.register_backend(cpu, f"{module.__name__}.FlexAttentionBackend")
    # vLLM asks each platform once in a process, and engines of other tests have asked.
    selector._cached_get_attn_backend.cache_clear()
    yield
    cpu.clear_override()
    selector._cached_get_attn_backend.cache_clear()


def generate(model, *, masked, **options):
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    wanted = [{"prompt_token_ids": ids} for ids in prompts()[8:12]]
    with engine(model, num_gpu_blocks_override=14, **options) as llm:
        if masked:
            llm.apply_model(vllm_mask.give_to_layers)
        outputs = llm.generate(wanted, sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_rows_give_the_tokens_of_vllms_own_backend_with_the_same_mask(
    tiny_llama, stock_by_flex_attention, monkeypatch
):
    # Prompts here have at most 300 tokens.
    monkeypatch.setattr(vllm_mask, "_NEAR", 16)
    causal, stock = (generate(tiny_llama, masked=masked) for masked in (False, True))
    ours = generate(tiny_llama, masked=False, **CUSTOM)
    assert ours == stock != causal
