# SPDX-License-Identifier: Apache-2.0
"""The families of models that the contiguous cache refuses, by reason."""

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
        "Falcon",
        "GPTJ",
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
    # Layers that keep something else than K and V, or attend to images.
    r"keep no K and V for their tokens": ["Rwkv"],
    r"model config": ["MiniMaxM3VL", "Mllama"],
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
REFUSED_IN_BATCHES = {f"{name}ForCausalLM": POSITIONS for name in COUNTING}
