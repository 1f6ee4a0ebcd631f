# SPDX-License-Identifier: Apache-2.0
"""What has another name in another release of the library."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from transformers.cache_utils import get_layer_types_and_kwargs

from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


#: Kinds of layers that keep no more than a window, or a chunk, of their tokens.
WINDOWED = frozenset({"sliding_attention", "hybrid_sliding", "chunked_attention"})


def cache_argument(model: PreTrainedModel) -> str:
    """Return the argument of ``model.forward`` that takes the cache.

    Models of the library have ``cache`` since 5.24, and warn about ``past_key_values``.
    """
    arguments = inspect.signature(model.forward).parameters
    return "cache" if "cache" in arguments else "past_key_values"


def kinds_and_windows(config: PreTrainedConfig) -> tuple[list[str], list[int | None]]:
    """Return the kind of each layer, and the window, or chunk, of those that have one.

    Layers that read another's K and V are left out. Newer releases of the library list them,
    as layers that keep nothing, and say windows for each layer, earlier ones once for all.
    """
    try:
        kinds, options = get_layer_types_and_kwargs(config)
    except AttributeError as error:
        raise UnsupportedError(
            f"the library knows no layers of models of type {config.model_type!r} ({error}), so "
            "that its own cache holds none of them either"
        ) from error
    each = options if isinstance(options, list) else [options] * len(kinds)
    modes = getattr(config, "kv_sharing_modes", None) or []
    own = [i for i in range(len(kinds)) if i >= len(modes) or modes[i] != "reuse"]
    sliding = [kinds[i] in WINDOWED for i in own]
    windows = [
        each[i].get("sliding_window") if slides else None
        for i, slides in zip(own, sliding, strict=True)
    ]
    return [kinds[i] for i in own], windows
