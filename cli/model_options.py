# SPDX-License-Identifier: Apache-2.0
"""The options that describe a model: a Hugging Face config, or its shape by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pyvattn.spec import CacheSpec

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--layers", type=int, help="Layers that keep a KV cache."),
    click.option("--kv-heads", type=int, help="KV heads of the model."),
    click.option("--head-dim", type=int, help="Elements of one head."),
    click.option("--latent-dim", type=int, help="Latent elements of a token and layer (MLA)."),
    click.option("--rope-dim", type=int, help="Rotary elements beside them (MLA) [64]."),
    click.option("--dtype", help="float32, float16, bfloat16, float8_e4m3fn or float8_e5m2."),
    click.option("--max-tokens", type=int, help="Longest request, in tokens."),
    click.option("--max-slots", type=int, help="Most requests that are live at once."),
    click.option("--tp", "tensor_parallel", type=int, default=1, help="Tensor-parallel ranks [1]."),
)

_SHAPE = ("layers", "kv_heads", "head_dim", "latent_dim", "rope_dim")


def model_options(command: _Command) -> _Command:
    """Add the options to a command; they arrive as keyword arguments for :func:`read_model`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_model(
    config: str | None, tensor_parallel: int, default: CacheSpec | None = None, **options: Any
) -> CacheSpec:
    """Return the spec that ``config`` or the options describe, or ``default`` for neither."""
    given = {name: value for name, value in options.items() if value is not None}
    if config is not None:
        return CacheSpec.from_hf_config(config, tensor_parallel=tensor_parallel, **given)
    if any(name in given for name in _SHAPE):
        return _by_hand(given).shard(tensor_parallel)
    if default is None:
        raise click.UsageError(
            "Give the path of a model's config.json, or --layers, --kv-heads and --head-dim."
        )
    from dataclasses import replace

    return replace(default, **given).shard(tensor_parallel)


def _by_hand(given: dict[str, Any]) -> CacheSpec:
    latent = "latent_dim" in given
    if latent and ("kv_heads" in given or "head_dim" in given):
        raise click.UsageError("--latent-dim (MLA) goes without --kv-heads and --head-dim.")
    needed = ("layers",) if latent else _SHAPE[:3]
    if missing := [name for name in needed if name not in given]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise click.UsageError(f"Missing {flags}.")
    return CacheSpec.mla(**given) if latent else CacheSpec(**given)
