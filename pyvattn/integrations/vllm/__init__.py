# SPDX-License-Identifier: Apache-2.0
"""vLLM on contiguous rows: a worker class, found through vLLM's own entry points.

``pyvattn.vllm`` has the names that vLLM is told. vLLM calls :func:`register` in every
process it starts; that tells vLLM names and changes nothing for an engine that does not ask
for them.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib import import_module

BACKEND = "pyvattn.integrations.vllm.attention_backend.RowAttentionBackend"
FLASH_BACKEND = "pyvattn.integrations.vllm.flash_rows.FlashRowBackend"
SLEEP_BACKEND = "pyvattn"
SWAP_CONNECTOR = "PyvattnSwapConnector"


def register() -> None:
    """Entry point ``vllm.general_plugins``: say what ``--attention-backend CUSTOM`` is."""
    if "vllm" not in sys.modules:
        return
    registry = import_module("vllm.v1.attention.backends.registry")
    registry.register_backend(registry.AttentionBackendEnum.CUSTOM, BACKEND)
    _offer_sleep_backend()
    _offer_swap_connector()
    if os.environ.get("PYVATTN_METRICS") == "1":
        _export_metrics()


@lru_cache(maxsize=1)
def _offer_sleep_backend() -> None:
    """Say what ``--sleep-mode-backend pyvattn`` is, where vLLM has such backends."""
    try:
        backends = import_module("vllm.device_allocator.sleep_mode_backend")
    except ImportError:
        return
    module = "pyvattn.integrations.vllm.sleep_backend"
    backends.SleepModeBackendFactory.register_backend(SLEEP_BACKEND, module, "KVSleepBackend")


@lru_cache(maxsize=1)
def _offer_swap_connector() -> None:
    """Say what ``"kv_connector": "PyvattnSwapConnector"`` of ``--kv-transfer-config`` is."""
    factory = import_module("vllm.distributed.kv_transfer.kv_connector.factory")
    module = "pyvattn.integrations.vllm.swap_connector"
    factory.KVConnectorFactory.register_connector(SWAP_CONNECTOR, module, "SwapConnector")


@lru_cache(maxsize=1)
def _export_metrics() -> None:
    """Add what the ledgers say to vLLM's own ``/metrics``."""
    import_module("pyvattn.metrics").register_metrics()
