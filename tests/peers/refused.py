# SPDX-License-Identifier: Apache-2.0
"""The families of models that do not get the library's tokens through our cache, by reason."""

from __future__ import annotations

REASONS = {
    # K and V as the layer cached them are not what attention reads.
    r"changes keys or values once they are cached": ["DiffLlama", "JetMoe"],
    r"uses cached values for more than attention": ["Doge"],
    # Attention that is the model's own.
    r"does not use the library's attention interface": [
        "BigBird",
        "Bloom",
        "CodeGen",
        "CpmAnt",
        "Falcon",
        "GPTJ",
        "GPTNeo",
        "GPTNeoXJapanese",
        "MegatronBert",
        "Mpt",
        "Mvp",
        "ProphetNet",
        "RemBert",
        "RoFormer",
        "TrOCR",
        "XGLM",
    ],
    r"take a cache of their own": ["MiniMax"],
    r"change the cache that they are given": ["RecurrentGemma"],
    r"attend with a mask of their own": ["Git"],
    r"attends to all tokens|does not attend through pyvattn": ["Inkling", "Moshi"],
    # Layers that keep something else than K and V, or attend to images.
    r"keep K and V of images": ["Mllama"],
    r"keep no K and V for their tokens": ["FalconMamba", "Mamba", "Mamba2", "Rwkv", "xLSTM"],
    r"model config": ["MiniMaxM3VL", "RoCBert", "Xmod"],
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
REFUSED = {f"{name}ForCausalLM": reason for reason, names in REASONS.items() for name in names}
REFUSED |= {
    "GotOcr2ForConditionalGeneration": r"does not use the library's attention interface",
    "OpenAIGPTLMHeadModel": r"does not use the library's attention interface",
    "ReformerModelWithLMHead": r"keep no K and V for their tokens",
    "XLMWithLMHeadModel": r"does not use the library's attention interface",
    "XLNetLMHeadModel": r"keep no K and V for their tokens",
}
REFUSED_IN_BATCHES = {f"{name}ForCausalLM": POSITIONS for name in COUNTING}
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
