# SPDX-License-Identifier: Apache-2.0
"""The families of models that the contiguous cache refuses, by reason."""

from __future__ import annotations

REASONS = {
    # K and V as the layer cached them are not what attention reads.
    r"changes keys or values once they are cached": ["DiffLlama", "JetMoe"],
    r"uses cached values for more than attention": ["Doge"],
    # Attention that is the model's own.
    r"does not use the library's attention interface": [
        "Bloom",
        "CodeGen",
        "Falcon",
        "GPTJ",
        "GPTNeoXJapanese",
        "Mpt",
        "XGLM",
    ],
    r"take a cache of their own": ["MiniMax"],
    # Configs that do not tell what the layers cache in words that CacheSpec reads: decoders of
    # models that translate or transcribe, BERTs, and layers that keep something else than K and V.
    r"keep no K and V for their tokens": ["Rwkv"],
    r"model config": [
        "Bart",
        "BigBird",
        "BigBirdPegasus",
        "Blenderbot",
        "BlenderbotSmall",
        "Camembert",
        "Data2VecText",
        "Electra",
        "Emu3",
        "Ernie",
        "MBart",
        "Marian",
        "MegatronBert",
        "MiniMaxM3VL",
        "Mllama",
        "Mvp",
        "PLBart",
        "Pegasus",
        "ProphetNet",
        "RemBert",
        "RoFormer",
        "Roberta",
        "RobertaPreLayerNorm",
        "TrOCR",
        "Whisper",
        "XLMRoberta",
        "XLMRobertaXL",
    ],
}
REFUSED = {f"{name}ForCausalLM": reason for reason, names in REASONS.items() for name in names}
REFUSED["BertLMHeadModel"] = REFUSED["RobertaForCausalLM"]
