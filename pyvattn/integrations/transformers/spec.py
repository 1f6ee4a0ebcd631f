# SPDX-License-Identifier: Apache-2.0
"""From a transformers model to the cache it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedModel

from pyvattn.attention import guard_needed
from pyvattn.cache import KVCache
from pyvattn.errors import ArgumentError, ConfigError, SpecError, UnsupportedError
from pyvattn.integrations.transformers.compat import WINDOWED, kinds_and_windows
from pyvattn.integrations.transformers.ranks import ranks_of
from pyvattn.integrations.transformers.rope import check_rope
from pyvattn.integrations.transformers.state_shapes import KEEPING, state_groups
from pyvattn.integrations.transformers.states import HYBRIDS, STATES
from pyvattn.layer_group import LayerGroup
from pyvattn.spec import CacheSpec
from pyvattn.spec_groups import with_groups
from pyvattn.text import shown

if TYPE_CHECKING:
    import torch


# Models whose code no cache of another kind can serve.
_REFUSED_TYPES = {
    "minimax": "take a cache of their own, and no other",
    "mllama_text_model": "keep K and V of images in some of their layers",
    "openai-gpt": "take no cache",
    "recurrent_gemma": "change the cache that they are given",
    "xlm": "take no cache in generate",
}
# Arguments of a KVCache that the model decides, or that callers have a parameter of their own for.
_SET_BY_THE_MODEL = {"spec", "memory", "device"}


def spec_for(
    model: PreTrainedModel,
    max_slots: int,
    max_tokens: int,
    dtype: torch.dtype | str | None = None,
) -> CacheSpec:
    """Return the spec of a cache for ``model``, by default with the dtype of its weights.

    ``dtype="float8_e4m3fn"`` is for a cache that quantises.

    Its tail guard is what the attention kernels of this machine need. Layers with a state are
    run with a few tokens, to see what they keep. Raises
    :class:`~pyvattn.errors.UnsupportedError` for a model with layers that no
    :class:`pyvattn.KVCache` holds, with rotary frequencies that ``max_tokens``
    would change or with layers on several GPUs, and
    :class:`~pyvattn.errors.SpecError` for a config that says too little.
    """
    spec = spec_of_tokens(model, max_slots, max_tokens, dtype)
    kinds, _ = kinds_and_windows(model.config.get_text_config(decoder=True))
    if KEEPING.isdisjoint(kinds):
        return spec
    if ranks_of(model) > 1:
        raise UnsupportedError(
            "layers with states are not divided over ranks yet: load the model without tp_plan"
        )
    check_loaded(model)
    return replace(spec, states=state_groups(model, kinds))


def spec_of_tokens(
    model: PreTrainedModel,
    max_slots: int,
    max_tokens: int,
    dtype: torch.dtype | str | None = None,
) -> CacheSpec:
    """:func:`spec_for` of the layers that keep K and V alone, without states."""
    check_model(model)
    _check_one_device(model)
    config = model.config.get_text_config(decoder=True)
    windows = _layer_windows(config)
    read = CacheSpec.from_hf_config(
        config.to_dict(),
        dtype=model.dtype if dtype is None else dtype,
        max_slots=max_slots,
        max_tokens=max_tokens,
        guard_tokens=guard_needed(str(model.dtype if dtype is None else dtype)),
        tensor_parallel=ranks_of(model),
    )
    spec = replace(with_windows(read, windows), states=())
    check_rope(config, spec.max_tokens)
    return spec


def check_model(model: object) -> None:
    """Raise :class:`~pyvattn.errors.ArgumentError` for what is no model, wrapped or not."""
    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        raise ArgumentError(f"model={shown(model)}: pass a model of transformers")


def check_cache_options(options: Mapping[str, Any]) -> None:
    """Raise :class:`~pyvattn.errors.ConfigError` for what is no option of a model's KVCache."""
    known = set(signature(KVCache).parameters) - _SET_BY_THE_MODEL
    if unknown := set(options) - known:
        raise ConfigError(
            f"a model's KVCache has no option {', '.join(sorted(unknown))}: use driver, page_size, "
            "layout and the others of pyvattn.KVCache"
        )


def check_loaded(model: PreTrainedModel) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` where weights are not on their device."""
    if model.device.type == "meta":
        raise UnsupportedError(
            "the model's weights are offloaded, and continuous batching needs them on the device: "
            "load the model there, or use generate with VAttentionCache.for_model(device=...)"
        )


def check_fit(model: PreTrainedModel, cache: KVCache) -> None:
    """Raise :class:`~pyvattn.errors.SpecError` where ``cache`` is not for ``model``."""
    check_loaded(model)
    if (where := str(model.device)) != cache.device:
        raise SpecError(
            f"the cache is on {cache.device} and the model on {where}: open the cache with "
            f"device={where!r}"
        )
    spec = cache.spec
    _check_temperature(model, spec.max_tokens)
    wanted = spec_for(model, max_slots=spec.max_slots, max_tokens=spec.max_tokens)
    for name in ("kind", "layers", "kv_heads", "head_dim", "shared", "dtype"):
        # Float8 is made of whatever the model computes in.
        if name != "dtype" or not spec.dtype.startswith("float8"):
            _check_equal(name, getattr(spec, name), getattr(wanted, name))
    _check_equal("states", spec.states, wanted.states)
    for layer in range(wanted.layers):
        has, needs = _kept(spec, layer), _kept(wanted, layer)
        _check_equal(f"the shape of layer {layer}", has[0], needs[0])
        # A cache that keeps more serves as well.
        if has[1] is not None and (needs[1] is None or has[1] < needs[1]):
            _check_equal(f"the window of layer {layer}", has[1], needs[1])


def check_positions(model: PreTrainedModel) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` for code that counts positions itself.

    It counts one sequence from what the cache holds, and a packed batch has many. Models with
    attention of their own are left to ``attend_through``, which refuses them for that.
    """
    own = next((one for one in model.modules() if isinstance(one, PreTrainedModel)), model)
    # Of the class: a caller may have wrapped the model's own, as hooks do.
    takes = "position_ids" in signature(type(own).forward).parameters
    if own._can_set_attn_implementation() and not takes:
        raise UnsupportedError(
            f"{type(own).__name__} takes no position_ids, so tokens of several requests cannot be "
            "run together: use generate with VAttentionCache.for_model()"
        )


def _check_temperature(model: PreTrainedModel, max_tokens: int) -> None:
    """Refuse queries whose scale the library takes from positions that it counts itself.

    Llama 4 does so in its layers without RoPE; the scale is 1 within the first ``floor_scale``.
    """
    config = model.config.get_text_config(decoder=True)
    scale = getattr(config, "floor_scale", None)
    if getattr(config, "attn_temperature_tuning", False) and scale and max_tokens >= scale:
        raise UnsupportedError(
            f"{config.model_type} scales queries by positions that it counts itself, from "
            f"{scale} tokens on, and a batch of several requests has many: open the cache with "
            f"max_tokens={scale - 1} at most, or use generate with VAttentionCache.for_model()"
        )


def positions_of(model: PreTrainedModel) -> int | None:
    """Return how many positions ``model`` has learned; ``None`` where it computes them."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "rope_parameters", None) is not None:
        return None
    return getattr(config, "max_position_embeddings", None)


def _check_one_device(model: PreTrainedModel) -> None:
    """Refuse a model that accelerate spread over GPUs; what it offloads computes on one."""
    placed = map(str, (getattr(model, "hf_device_map", None) or {}).values())
    names = {f"cuda:{name}" if name.isdigit() else name for name in placed}
    computing = sorted(names - {"cpu", "disk", "meta"})
    if len(computing) > 1:
        raise UnsupportedError(
            f"the model's layers lie on {', '.join(computing)}, and a KVCache lies on one GPU: "
            "load the model with device_map={'': 0}, or use the library's DynamicCache"
        )


def _check_equal(name: str, has: object, needs: object) -> None:
    if has != needs:
        raise SpecError(
            f"the cache has {name}={has!r} and the model needs {needs!r}: open the cache with "
            "spec_for(model, max_slots, max_tokens)"
        )


def _kept(spec: CacheSpec, layer: int) -> tuple[tuple[int, int, int, int], int | None]:
    """Return what a layer keeps of a token, as LayerGroup.shape, and of how many."""
    place, _ = spec.group_of(layer)
    part = spec.parts[place]
    shape = part.kv_heads, part.head_dim, part.v_head_dim, part.latent_dim
    return shape, spec.windows[place]


def _layer_windows(config: PreTrainedConfig) -> list[int | None]:
    """Return how many tokens each layer keeps, as the library's own cache has it."""
    if why := _REFUSED_TYPES.get(config.model_type):
        raise UnsupportedError(
            f"the models of type {config.model_type!r} {why}: call generate without this cache"
        )
    kinds, windows = kinds_and_windows(config)
    held = {"full_attention"} | WINDOWED | STATES | HYBRIDS
    if others := sorted(set(kinds) - held):
        raise UnsupportedError(
            f"the model has layers of {', '.join(others)}; the contiguous cache holds "
            "attention to all tokens, windows, chunks and states: use the library's DynamicCache"
        )
    windows = [window for kind, window in zip(kinds, windows, strict=True) if kind not in STATES]
    return windows


def with_windows(spec: CacheSpec, windows: Sequence[int | None]) -> CacheSpec:
    """Return ``spec`` with the windows of the library in place of those that were read."""
    if len(windows) != spec.kept_layers or max(spec.shared.values(), default=0) >= len(windows):
        return spec.flat()
    kept: dict[tuple[tuple[int, int, int, int], int | None], list[int]] = {}
    for layer, window in enumerate(windows):
        shape, _ = _kept(spec, layer)
        short = window is not None and window < spec.max_tokens
        kept.setdefault((shape, window if short else None), []).append(layer)
    if len(kept) == 1 and next(iter(kept))[1] is None and not spec.shared:
        return spec.flat()
    groups = [
        LayerGroup(layers, heads, dim, window, v_head_dim=v_dim, latent_dim=latent)
        for ((heads, dim, v_dim, latent), window), layers in kept.items()
    ]
    return with_groups(spec, groups)
