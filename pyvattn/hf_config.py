"""Reads the KV cache's shape out of a Hugging Face ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pyvattn.errors import SpecError

# The names that model families give to the same thing, the common one first.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_QUERY_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim")
_MAX_TOKENS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_DTYPE = ("dtype", "torch_dtype")

# Layers that keep a state of fixed size instead of K and V.
_STATE_LAYERS = frozenset({"linear_attention", "mamba", "recurrent", "conv", "ssm"})


def read_fields(config: Mapping[str, Any] | str | PathLike[str]) -> dict[str, Any]:
    """Return the fields of :class:`~pyvattn.spec.CacheSpec` that ``config`` determines."""
    whole = config if isinstance(config, Mapping) else _load(Path(config))
    if whole.get("is_encoder_decoder"):
        raise SpecError("encoder-decoder models are not supported: give a decoder's config")
    text = _text_part(whole)
    result: dict[str, Any] = {"layers": _cached_layers(text), **_heads(text)}
    if (tokens := _find(text, _MAX_TOKENS)) is not None:
        result["max_tokens"] = tokens
    dtype = _find(text, _DTYPE) or _find(whole, _DTYPE)
    if dtype not in (None, "auto"):
        result["dtype"] = dtype
    return result


def _load(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(
            f"no model config at {file}: give the path of a config.json or of the folder it lies "
            "in (models are not downloaded)"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpecError(f"cannot read the model config {file}: {error}") from error
    if not isinstance(parsed, dict):
        raise SpecError(f"{file} is not a model config: it holds no JSON object")
    return parsed


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the decoder's part of a multimodal config, or the config itself."""
    for name in ("text_config", "llm_config", "language_config"):
        if isinstance(part := config.get(name), Mapping):
            return part
    return config


def _find(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _need(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    value = _find(config, names)
    if value is None:
        kind = config.get("model_type", "unknown")
        raise SpecError(
            f"the model config (model_type {kind!r}) has no {names[0]}: "
            "give layers, kv_heads and head_dim by hand"
        )
    return _whole(value, names[0], minimum=1)


def _optional(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    return 0 if value is None else _whole(value, name, minimum=0)


def _whole(value: Any, name: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise SpecError(
            f"{name}={value!r} of the model config is not a whole number from {minimum}"
        )
    return value


def _cached_layers(config: Mapping[str, Any]) -> int:
    """Count the layers that keep K and V of their own."""
    layers = _need(config, _LAYERS)
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        layers = sum(kind not in _STATE_LAYERS for kind in kinds)
    return layers - _optional(config, "num_kv_shared_layers")


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    if latent := _optional(config, "kv_lora_rank"):
        rope = _optional(config, "qk_rope_head_dim")
        return {
            "kind": "mla",
            "kv_heads": 1,
            "head_dim": latent + rope,
            "latent_dim": latent,
            "rope_dim": rope,
        }
    return {"kv_heads": _kv_heads(config), "head_dim": _head_dim(config)}


def _kv_heads(config: Mapping[str, Any]) -> int:
    # Falcon's first models say multi_query and nothing else.
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return _optional(config, "multi_query_group_num") or 1
    if _find(config, _KV_HEADS) is None:
        return _need(config, _QUERY_HEADS)
    return _need(config, _KV_HEADS)


def _head_dim(config: Mapping[str, Any]) -> int:
    if _find(config, _HEAD_DIM) is not None:
        return _need(config, _HEAD_DIM)
    hidden, heads = _need(config, _HIDDEN), _need(config, _QUERY_HEADS)
    if hidden % heads:
        raise SpecError(f"hidden_size={hidden} is not divisible by {heads} attention heads")
    return hidden // heads
