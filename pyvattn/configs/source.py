# SPDX-License-Identifier: Apache-2.0
"""Finds the decoder's part of a Hugging Face config, on disk or parsed already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pyvattn.arguments import check_path
from pyvattn.configs.families import BERTS, DEFAULTS, WITH_AN_ENCODER
from pyvattn.errors import ArgumentError, ConfigError, SpecError
from pyvattn.files import read_text
from pyvattn.text import printable, shown

_MOST_BYTES = 64 << 20

# Where multimodal configs keep the part that describes the language model.
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")


def decoder_config(
    config: Mapping[str, Any] | str | PathLike[str],
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the decoder's part of ``config``, and all of it.

    ``config`` is a parsed ``config.json``, its path, or that of the folder it
    lies in. Raises :class:`~pyvattn.errors.SpecError` for a file that cannot be
    read, for an encoder and for an encoder-decoder model.
    """
    if not isinstance(config, Mapping | str | PathLike):
        raise SpecError(
            f"config {shown(config)}: give a parsed config.json, its path, or that of its folder"
        )
    whole = config if isinstance(config, Mapping) else _load(_path(config))
    if not all(isinstance(name, str) for name in whole):
        raise SpecError(f"config {shown(config)}: its names must be text, as in a config.json")
    text = whole
    while (part := _text_part(text)) is not None:
        text = part
    if whole.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        raise SpecError("encoder-decoder models are not supported: give a decoder's config")
    part = _of_the_part(text, whole)
    kind = part.get("model_type")
    if kind in BERTS and not part.get("is_decoder"):
        raise SpecError(
            f"models of type {kind!r} are encoders, which keep no tokens, unless the config has "
            "is_decoder=true: set it for a decoder"
        )
    return (_of_the_decoder(part) if kind in WITH_AN_ENCODER else part), whole


def _path(config: str | PathLike[str]) -> Path:
    try:
        return check_path("config", config)
    except (ArgumentError, ConfigError) as error:
        raise SpecError(str(error)) from None


def _load(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    where = printable(str(file))
    try:
        parsed = json.loads(read_text(file, _MOST_BYTES))
    except FileNotFoundError:
        raise SpecError(
            f"no model config at {where}: give the path of a config.json or of the folder it lies "
            "in (models are not downloaded)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"cannot read the model config {where}: {error}") from error
    if not isinstance(parsed, dict):
        raise SpecError(f"{where} is not a model config: it holds no JSON object")
    return parsed


def _of_the_part(text: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``text`` with the model type of its family's language model.

    Classes of multimodal models also take files without a part for the language model, as
    Qwen2-VL's are, and parts that do not say what they are.
    """
    kind = text.get("model_type", whole.get("model_type"))
    if kind in DEFAULTS or f"{kind}_text" not in DEFAULTS:
        return text
    return {**text, "model_type": f"{kind}_text"}


# What configs of encoder-decoders call the decoder's sizes: their usual names may be the encoder's.
_OF_DECODERS = {
    "decoder_layers": "num_hidden_layers",
    "num_decoder_layers": "num_hidden_layers",
    "decoder_attention_heads": "num_attention_heads",
    "num_decoder_attention_heads": "num_attention_heads",
    "max_target_positions": "max_position_embeddings",
}


def _of_the_decoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a family's config with the decoder's sizes under their usual names."""
    if config.get("is_encoder_decoder") is not False:
        raise SpecError(
            f"models of type {config.get('model_type')!r} have an encoder unless the config has "
            "is_encoder_decoder=false: set it for the decoder alone"
        )
    sizes = {usual: config[name] for name, usual in _OF_DECODERS.items() if name in config}
    return {**config, **sizes}


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    parts = (config.get(name) for name in _TEXT_PARTS)
    return next((part for part in parts if isinstance(part, Mapping)), None)
