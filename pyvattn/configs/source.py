"""Finds the decoder's part of a Hugging Face config, on disk or parsed already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pyvattn.errors import SpecError
from pyvattn.text import shown

# Where multimodal configs keep the part that describes the language model.
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")


def decoder_config(
    config: Mapping[str, Any] | str | PathLike[str],
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the decoder's part of ``config``, and all of it.

    ``config`` is a parsed ``config.json``, its path, or that of the folder it
    lies in. Raises :class:`~pyvattn.errors.SpecError` for a file that cannot be
    read and for an encoder-decoder model.
    """
    if not isinstance(config, Mapping | str | PathLike):
        raise SpecError(
            f"config {shown(config)}: give a parsed config.json, its path, or that of its folder"
        )
    whole = config if isinstance(config, Mapping) else _load(Path(config))
    text = whole
    while (part := _text_part(text)) is not None:
        text = part
    if whole.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        raise SpecError("encoder-decoder models are not supported: give a decoder's config")
    return text, whole


def _load(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        # Editors on Windows put a byte order mark in front.
        parsed = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SpecError(
            f"no model config at {file}: give the path of a config.json or of the folder it lies "
            "in (models are not downloaded)"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SpecError(f"cannot read the model config {file}: {error}") from error
    if not isinstance(parsed, dict):
        raise SpecError(f"{file} is not a model config: it holds no JSON object")
    return parsed


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    parts = (config.get(name) for name in _TEXT_PARTS)
    return next((part for part in parts if isinstance(part, Mapping)), None)
