# SPDX-License-Identifier: Apache-2.0
"""Models of the library with random weights: what they compute costs as much as the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyvattn.errors import ConfigError, MissingDependency
from pyvattn.gpu_timing import require_torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A Llama: sizes of one layer, how many there are, and the dtype of the weights."""

    hidden: int
    feed: int
    heads: int
    kv_heads: int
    vocabulary: int
    layers: int
    dtype: str
    spread: float = 0.02


SHAPES = {
    "llama-3-8b": Shape(4096, 14336, 32, 8, 128256, 32, "bfloat16"),
    # Weights so wide that the next token depends on what stands before.
    "tiny": Shape(64, 96, 8, 2, 97, 3, "float32", spread=0.2),
}


def make_model(
    name: str, device: str, *, layers: int | None = None, dtype: str | None = None, seed: int = 0
) -> Any:
    """Return a model of the shape called ``name``, its seeded weights made on ``device``.

    ``layers`` and ``dtype`` are those of the shape by default.

    Raises :class:`~pyvattn.errors.ConfigError` for an unknown name, and
    :class:`~pyvattn.errors.MissingDependency` without torch or transformers.
    """
    shape = _shape_of(name)
    torch = require_torch()
    LlamaConfig, LlamaForCausalLM = _llama()
    weights = getattr(torch, dtype or shape.dtype)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        initializer_range=shape.spread,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        dtype=weights,
    )
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(weights)
    try:
        with torch.device(device):
            model: PreTrainedModel = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def make_prompts(name: str, count: int, tokens: int, seed: int = 1) -> list[list[int]]:
    """Return ``count`` seeded random prompts for the model called ``name``.

    Raises as :func:`make_model` does.
    """
    vocabulary = _shape_of(name).vocabulary
    torch = require_torch()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocabulary, (count, tokens), generator=generator)
    prompts: list[list[int]] = ids.tolist()
    return prompts


def _shape_of(name: str) -> Shape:
    if name not in SHAPES:
        raise ConfigError(f"model {name!r} is unknown: use one of {', '.join(SHAPES)}")
    return SHAPES[name]


def _llama() -> tuple[Any, Any]:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise MissingDependency(
            "this bench runs a model of transformers: pip install 'pyvattn[transformers]'"
        ) from error
    return LlamaConfig, LlamaForCausalLM
