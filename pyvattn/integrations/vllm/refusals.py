# SPDX-License-Identifier: Apache-2.0
"""What is not supported, refused before anything is allocated, with the option to change."""

from __future__ import annotations

from typing import Any

from pyvattn.errors import UnsupportedError

__all__ = ["check_config", "check_groups"]

_CACHE_DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3")


def check_config(config: Any) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` for a ``VllmConfig`` that cannot work.

    The error names everything that is in the way, so that one start is enough.
    """
    parallel = config.parallel_config
    dtype = config.cache_config.cache_dtype
    problems = []
    if config.speculative_config is not None:
        problems.append("speculative decoding: leave out --speculative-config")
    if config.kv_transfer_config is not None:
        problems.append("KV connectors: leave out --kv-transfer-config")
    for name in ("decode", "prefill"):
        if getattr(parallel, f"{name}_context_parallel_size", 1) > 1:
            problems.append(f"context parallelism: set --{name}-context-parallel-size 1")
    if dtype not in _CACHE_DTYPES:
        problems.append(f"--kv-cache-dtype {dtype}: use one of {', '.join(_CACHE_DTYPES)}")
    if config.model_config.enable_sleep_mode:
        problems.append("sleep mode: leave out --enable-sleep-mode")
    if config.model_config.is_encoder_decoder:
        problems.append("encoder-decoder models: leave out --worker-cls")
    _refuse(problems)


def check_groups(cache_config: Any, shared_layers: object) -> Any:
    """Return the one ``FullAttentionSpec`` of a ``KVCacheConfig``, or refuse what it has."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    groups = [group.kv_cache_spec for group in cache_config.kv_cache_groups]
    problems = []
    if len(groups) != 1 or type(groups[0]) is not FullAttentionSpec:
        kinds = ", ".join(type(spec).__name__ for spec in groups) or "no KV cache"
        problems.append(
            f"layers of the kinds {kinds}: only full attention is, so try "
            "--disable-hybrid-kv-cache-manager for sliding windows, or leave out --worker-cls"
        )
    if shared_layers:
        problems.append("layers that share another's KV cache: leave out --worker-cls")
    _refuse(problems)
    return groups[0]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UnsupportedError(f"not supported by pyvattn's worker: {'; '.join(problems)}")
