# SPDX-License-Identifier: Apache-2.0
"""What is not supported, refused before anything is allocated, with the option to change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyvattn.errors import UnsupportedError
from pyvattn.integrations.vllm.connectors import check_connector
from pyvattn.integrations.vllm.lease import shares

__all__ = ["check_backends", "check_config", "check_groups", "check_layers"]

_CACHE_DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3")
# How --speculative-config may draft: from the tokens so far, or by a model or a head of EAGLE
# whose layers have their KV in the rows of the others.
_DRAFTED_BY = ("ngram", "draft_model", "eagle")


def check_config(config: Any) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` for a ``VllmConfig`` that cannot work.

    The error names everything that is in the way, so that one start is enough.
    """
    parallel = config.parallel_config
    dtype = config.cache_config.cache_dtype
    problems = []
    method = getattr(config.speculative_config, "method", None)
    if method is not None and method not in _DRAFTED_BY:
        problems.append(
            f"speculative decoding by {method}: set method in --speculative-config to one of "
            f"{', '.join(_DRAFTED_BY)}"
        )
    problems += check_connector(config)
    for name in ("decode", "prefill"):
        if getattr(parallel, f"{name}_context_parallel_size", 1) > 1:
            problems.append(f"context parallelism: set --{name}-context-parallel-size 1")
    if dtype not in _CACHE_DTYPES:
        problems.append(f"--kv-cache-dtype {dtype}: use one of {', '.join(_CACHE_DTYPES)}")
    if config.model_config.enable_sleep_mode and not shares(config):
        problems.append(
            "sleep mode with memory of its own: leave out --enable-sleep-mode, or set pyvattn's "
            "option memory to shared"
        )
    if config.model_config.is_encoder_decoder:
        problems.append("encoder-decoder models: leave out --worker-cls")
    _refuse(problems)


def check_backends(groups: Iterable[Iterable[str]]) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` for attention backends that read no rows.

    ``groups`` has the names of each KV cache group's. FLEX_ATTENTION looks up which token a block
    holds in a table of as many blocks as the scheduler has, and the ids of rows are larger.
    """
    problems = []
    for names in map(set, groups):
        if "FLEX_ATTENTION" in names:
            problems.append(
                "vLLM's backend FLEX_ATTENTION: set --attention-backend CUSTOM and pyvattn's "
                "option kernel to flex or to a FlexKernel of your own"
            )
        if len(names) > 1:
            problems.append(
                "layers of one KV cache group with several attention backends, "
                f"{', '.join(sorted(names))}: set --attention-backend"
            )
    _refuse(problems)


def check_layers(cache_config: Any, attending: Iterable[str]) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` for layers with KV that do not attend.

    Not with the model, that is: runner V2 lets those that draft attend by themselves.
    """
    known = set(attending)
    layers = [name for group in cache_config.kv_cache_groups for name in group.layer_names]
    if others := [name for name in layers if name not in known]:
        _refuse(
            [
                f"a draft model in vLLM's runner V2 ({others[0]} has KV of its own): set "
                "VLLM_USE_V2_MODEL_RUNNER=0"
            ]
        )


def check_groups(cache_config: Any, shared_layers: object, leases: bool = False) -> list[Any]:
    """Return the spec of each group of a ``KVCacheConfig``, or refuse what it has.

    Layers with full attention and with a sliding window are taken, where all have tokens of the
    same shape: their blocks are of one pool. ``leases``: the engine shares memory with others.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    specs = [group.kv_cache_spec for group in cache_config.kv_cache_groups]
    problems = []
    if not specs or not all(type(spec) in (FullAttentionSpec, SlidingWindowSpec) for spec in specs):
        kinds = ", ".join(type(spec).__name__ for spec in specs) or "no KV cache"
        problems.append(
            f"layers of the kinds {kinds}: only full attention and sliding windows are, so "
            "leave out --worker-cls"
        )
    elif len(shapes := {_shape(spec) for spec in specs}) > 1:
        listed = " and ".join(f"{tokens} of {heads}" for tokens, *heads in sorted(shapes, key=str))
        problems.append(
            f"layers whose blocks differ (tokens of [KV heads, head sizes, dtype]): {listed}; try "
            "--disable-hybrid-kv-cache-manager, or leave out --worker-cls"
        )
    if leases and len(specs) > 1:
        problems.append(
            f"{len(specs)} groups of layers with pyvattn option memory='shared': leave it out, or "
            "try --disable-hybrid-kv-cache-manager"
        )
    if shared_layers:
        problems.append("layers that share another's KV cache: leave out --worker-cls")
    _refuse(problems)
    return specs


def _shape(spec: Any) -> tuple[Any, ...]:
    value_size = getattr(spec, "head_size_v", spec.head_size)
    return (spec.block_size, spec.num_kv_heads, spec.head_size, value_size, str(spec.dtype))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UnsupportedError(f"not supported by pyvattn's worker: {'; '.join(problems)}")
