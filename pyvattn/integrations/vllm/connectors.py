# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's KV connectors there is, and whether it can find blocks by vLLM's ids."""

from __future__ import annotations

from typing import Any

from pyvattn.integrations.vllm import SWAP_CONNECTOR
from pyvattn.integrations.vllm.options import Options

__all__ = ["check_connector", "has_home_view", "swaps"]

# Run over rows, with real vLLM.
_TRIED = ("ExampleConnector", "OffloadingConnector")


def swaps(config: Any) -> bool:
    """Return whether preempted requests go to the host by our own connector."""
    return _name(config) == SWAP_CONNECTOR


def has_home_view(config: Any) -> bool:
    """Return whether each block is to be mapped at its id: as asked, or if a connector needs it."""
    asked = Options.of(config.additional_config).home_view
    return _name(config) not in (None, SWAP_CONNECTOR) if asked is None else asked


def check_connector(config: Any) -> list[str]:
    """Return what is in the way of a ``VllmConfig``'s KV connector, and how to change it."""
    name, options = _name(config), Options.of(config.additional_config)
    if name is not None and options.memory == "shared":
        return ["KV connectors with pyvattn's option memory='shared': leave one out"]
    problems = [] if name in (None, SWAP_CONNECTOR) else _in_the_way(config, name, options)
    if has_home_view(config) and getattr(config.attention_config.backend, "name", "") == "CUSTOM":
        # K and V lie apart there, and layers between tokens: no layout of vLLM's.
        problems.append(
            "--attention-backend CUSTOM with a KV connector or pyvattn's option home_view: leave "
            "one out"
        )
    return problems


def _in_the_way(config: Any, name: str, options: Options) -> list[str]:
    problems = []
    if SWAP_CONNECTOR in (children := _children(config)):
        problems.append(f"{SWAP_CONNECTOR} within {name}: use it alone")
    if untried := [each for each in children or [name] if each not in _TRIED]:
        if not options.home_view:
            problems.append(
                f"the KV connector {', '.join(untried)}: set kv_connector in --kv-transfer-config "
                f"to {SWAP_CONNECTOR}, {' or '.join(_TRIED)}, or try with pyvattn's option "
                "home_view=true"
            )
    elif options.home_view is False:
        problems.append(f"the KV connector {name} without pyvattn's option home_view: leave it out")
    # The connectors of older releases take the blocks of a layer to follow each other.
    if not hasattr(config.cache_config, "get_resolved_kv_cache_layout"):
        problems.append(f"the KV connector {name} with vLLM before 0.32: use {SWAP_CONNECTOR}")
    if options.late_binding:
        problems.append(f"the KV connector {name} with pyvattn's option late_binding: set it false")
    return problems


def _name(config: Any) -> str | None:
    name: str | None = getattr(config.kv_transfer_config, "kv_connector", None)
    return name


def _children(config: Any) -> list[str]:
    """Return the names of the connectors in vLLM's MultiConnector, or none."""
    if _name(config) != "MultiConnector":
        return []
    extra = config.kv_transfer_config.kv_connector_extra_config
    return [str(child.get("kv_connector")) for child in extra.get("connectors", [])]
