# SPDX-License-Identifier: Apache-2.0
"""What has another name in another release of the library."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def cache_argument(model: PreTrainedModel) -> str:
    """Return the argument of ``model.forward`` that takes the cache.

    Models of the library have ``cache`` since 5.24, and warn about ``past_key_values``.
    """
    arguments = inspect.signature(model.forward).parameters
    return "cache" if "cache" in arguments else "past_key_values"
