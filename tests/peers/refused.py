# SPDX-License-Identifier: Apache-2.0
"""The families of models that do not get the library's tokens through our cache, by reason."""

from __future__ import annotations

REASONS = {
    r"take a cache of their own": ["MiniMax"],
    r"change the cache that they are given": ["RecurrentGemma"],
    # Layers that keep something else than K and V, or attend to images.
    r"keep K and V of images": ["Mllama"],
    r"keep no K and V for their tokens": ["FalconMamba", "Mamba", "Mamba2", "Rwkv", "xLSTM"],
    r"model config": ["MiniMaxM3VL"],
    # Layers that choose which tokens to attend to, by keys that they keep besides.
    r"layers of (deepseek|qwen)_sparse_attention": [
        "AXK2",
        "DeepseekV32",
        "GlmMoeDsa",
        "HYV4",
        "Qwen4Exp",
    ],
    r"layers of compressed_sparse_attention": ["DeepseekV4"],
}
# Decoders that count positions themselves, which a packed batch does not let them: these are
# refused in continuous batching alone.
POSITIONS = r"takes no position_ids"
COUNTING = [
    "Bart",
    "BigBirdPegasus",
    "Blenderbot",
    "BlenderbotSmall",
    "MBart",
    "Marian",
    "PLBart",
    "Pegasus",
    "Whisper",
]
# Attention that is the model's own, which reads the rows of one batch.
OWN_ATTENTION = r"attends with code of its own"
WITH_OWN_ATTENTION = [
    "BigBird",
    "Bloom",
    "CodeGen",
    "CpmAnt",
    "DiffLlama",
    "Doge",
    "Falcon",
    "GPTJ",
    "GPTNeo",
    "GPTNeoXJapanese",
    "Git",
    "Inkling",
    "JetMoe",
    "MegatronBert",
    "Moshi",
    "Mpt",
    "Mvp",
    "ProphetNet",
    "RemBert",
    "RoFormer",
    "TrOCR",
    "XGLM",
]
REFUSED = {f"{name}ForCausalLM": reason for reason, names in REASONS.items() for name in names}
REFUSED |= {
    "OpenAIGPTLMHeadModel": r"take no cache",
    "ReformerModelWithLMHead": r"keep no K and V for their tokens",
    "XLMWithLMHeadModel": r"take no cache",
    "XLNetLMHeadModel": r"keep no K and V for their tokens",
}
REFUSED_IN_BATCHES = {f"{name}ForCausalLM": POSITIONS for name in COUNTING}
REFUSED_IN_BATCHES |= {f"{name}ForCausalLM": OWN_ATTENTION for name in WITH_OWN_ATTENTION}
REFUSED_IN_BATCHES["GotOcr2ForConditionalGeneration"] = OWN_ATTENTION
# Mamba layers that cannot go on from a state with several tokens.
REFUSED_IN_BATCHES |= dict.fromkeys(
    ("JambaForCausalLM", "ZambaForCausalLM"), r"begins its state anew with every several tokens"
)
# What its own cache does with these, whatever their size.
LIBRARY_FAILS = {"BltForCausalLM": r"no attribute 'num_hidden_layers'"}
NOT_TRIED = {
    "Gemma3nForConditionalGeneration": "needs the package timm",
    "Gemma4AssistantForCausalLM": "goes on from the states of another model",
    "Gemma4UnifiedAssistantForCausalLM": "goes on from the states of another model",
    "Gemma4UnifiedForConditionalGeneration": "is not small with any sizes that were tried",
    "MusicgenForCausalLM": "generates several rows of codes for each prompt",
    "MusicgenMelodyForCausalLM": "generates several rows of codes for each prompt",
}
