# SPDX-License-Identifier: Apache-2.0
"""What has another name in another release of the library."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from transformers.cache_utils import get_layer_types_and_kwargs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def cache_argument(model: PreTrainedModel) -> str:
    """Return the argument of ``model.forward`` that takes the cache.

    Models of the library have ``cache`` since 5.24, and warn about ``past_key_values``.
    """
    arguments = inspect.signature(model.forward).parameters
    return "cache" if "cache" in arguments else "past_key_values"


def kinds_and_windows(config: PreTrainedConfig) -> tuple[list[str], list[int | None]]:
    """Return the kind of each layer, and the window of those with sliding attention.

    Newer releases of the library say it for each layer, earlier ones once for all.
    """
    kinds, options = get_layer_types_and_kwargs(config)
    each = options if isinstance(options, list) else [options] * len(kinds)
    windows = [one.get("sliding_window") for one in each]
    sliding = [kind == "sliding_attention" for kind in kinds]
    return kinds, [w if slides else None for w, slides in zip(windows, sliding, strict=True)]
