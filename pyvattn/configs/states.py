# SPDX-License-Identifier: Apache-2.0
"""Finds out what layers with a state hold for a request, in families where that is known.

As vLLM holds it: the inputs of a convolution that come before the next one, in the model's
dtype, and the recurrent state in a dtype that the config may name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyvattn.configs.fields import HIDDEN, Fields
from pyvattn.configs.layers import KEEPS_STATE, Kinds
from pyvattn.errors import SpecError
from pyvattn.state_group import StateGroup

_DTYPE = ("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
Shapes = dict[str, tuple[int, ...]]


def layer_states(fields: Fields, kinds: Kinds, dtype: str) -> list[StateGroup]:
    """Return the states of a model's layers; none where they are not known.

    ``dtype`` is the model's. Raises :class:`~pyvattn.errors.SpecError` where sizes do not fit.
    """
    count = sum(kind in KEEPS_STATE for kind in kinds)
    read = _READERS.get(fields.model_type)
    shapes = read(fields) if count and read else None
    if not shapes:
        return []
    recurrent = fields.find(*_DTYPE) or _RECURRENT.get(fields.model_type, dtype)
    dtypes = {"conv": dtype, "recurrent": dtype if recurrent == "auto" else recurrent}
    tensors = {name: (shape, dtypes[name]) for name, shape in shapes.items()}
    return [StateGroup(range(count), tensors)]


def _all_of(fields: Fields, *names: str) -> list[int] | None:
    """Return what the config says of ``names``; nothing unless it says all."""
    found = [fields.count(name) for name in names]
    return None if None in found else [value for value in found if value is not None]


def _gated_delta(fields: Fields) -> Shapes | None:
    sizes = _all_of(
        fields,
        "linear_num_key_heads",
        "linear_key_head_dim",
        "linear_num_value_heads",
        "linear_value_head_dim",
        "linear_conv_kernel_dim",
    )
    if sizes is None:
        return None
    key_heads, key_dim, value_heads, value_dim, kernel = sizes
    width = 2 * key_heads * key_dim + value_heads * value_dim
    return {"conv": (kernel - 1, width), "recurrent": (value_heads, value_dim, key_dim)}


def _mamba2(heads: str, dim: str, groups: str, state: str, kernel: str) -> Any:
    def read(fields: Fields) -> Shapes | None:
        sizes = _all_of(fields, heads, groups, state, kernel)
        if sizes is None:
            return None
        count, in_groups, states, width = sizes
        each = _head_dim(fields, count, dim)
        if each is None:
            return None
        channels = count * each + 2 * in_groups * states
        return {"conv": (width - 1, channels), "recurrent": (count, each, states)}

    return read


def _head_dim(fields: Fields, heads: int, name: str) -> int | None:
    """Read the width of a head, which may follow from that of all of them."""
    if fields.find(name) not in (None, "auto"):
        return fields.count(name)
    hidden = fields.count(*HIDDEN)
    whole = fields.optional("mamba_d_ssm") or fields.optional("mamba_expand") * (hidden or 0)
    if not whole:
        return None
    if whole % heads:
        raise SpecError(f"{whole} channels of the model's states are not {heads} heads")
    return whole // heads


def _short_conv(fields: Fields) -> Shapes | None:
    kernel, hidden = fields.count("conv_L_cache"), fields.count(*HIDDEN)
    return {"conv": (kernel - 1, hidden)} if kernel and hidden and kernel > 1 else None


def _kimi_delta(fields: Fields) -> Shapes | None:
    config = fields.find("linear_attn_config")
    if not isinstance(config, Mapping):
        return None
    inner = Fields({**config, "model_type": fields.model_type})
    sizes = _all_of(inner, "num_heads", "head_dim", "short_conv_kernel_size")
    if sizes is None:
        return None
    heads, dim, kernel = sizes
    return {"conv": (kernel - 1, 3 * heads * dim), "recurrent": (heads, dim, dim)}


_BAMBA = _mamba2("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")
_READERS: Mapping[str, Callable[[Fields], Shapes | None]] = {
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _gated_delta),
    "nemotron_h": _mamba2(
        "mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"
    ),
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid"), _BAMBA),
    "zamba2": _mamba2(
        "n_mamba_heads", "mamba_headdim", "mamba_ngroups", "mamba_d_state", "mamba_d_conv"
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _short_conv),
    "kimi_linear": _kimi_delta,
}
# Where the config does not name a dtype; elsewhere it is the model's.
_RECURRENT = {"kimi_linear": "float32", "qwen3_5_text": "float32", "qwen3_5_moe_text": "float32"}
