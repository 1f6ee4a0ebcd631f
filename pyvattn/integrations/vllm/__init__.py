# SPDX-License-Identifier: Apache-2.0
"""vLLM on contiguous rows: a worker class, found through vLLM's own entry points.

``pyvattn.vllm`` has the names that vLLM is told. vLLM calls :func:`register` in every
process it starts; that tells vLLM names and changes nothing for an engine that does not ask
for them.
"""

from __future__ import annotations

import sys
from importlib import import_module

BACKEND = "pyvattn.integrations.vllm.attention_backend.RowAttentionBackend"
FLASH_BACKEND = "pyvattn.integrations.vllm.flash_rows.FlashRowBackend"


def register() -> None:
    """Entry point ``vllm.general_plugins``: say what ``--attention-backend CUSTOM`` is."""
    if "vllm" not in sys.modules:
        return
    registry = import_module("vllm.v1.attention.backends.registry")
    registry.register_backend(registry.AttentionBackendEnum.CUSTOM, BACKEND)
