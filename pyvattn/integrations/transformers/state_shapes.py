# SPDX-License-Identifier: Apache-2.0
"""Which tensors the layers of a model keep as states: their modules are asked, with one token.

Their shapes and dtypes are those of the model's own code, and of the kernels that it uses, which
no config says.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import Conv1d, Module
from transformers import DynamicCache

from pyvattn.errors import UnsupportedError
from pyvattn.state_group import StateGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Kinds of layers that keep a state, of those that keep no K and V.
KEEPING = frozenset({"linear_attention", "conv"})
CONV, RECURRENT = "conv", "recurrent"

_Tensors = dict[str, tuple[tuple[int, ...], str]]
_known: WeakKeyDictionary[Module, tuple[torch.dtype, list[_Tensors]]] = WeakKeyDictionary()


def tensor_name(kind: str, number: int) -> str:
    """Return the name of a layer's state of that kind, of which most layers have one."""
    return kind if number == 0 else f"{kind}_{number}"


def state_groups(model: PreTrainedModel, kinds: Sequence[str]) -> tuple[StateGroup, ...]:
    """Return the states of ``model``, whose layers are of these kinds, in groups that are alike.

    Raises :class:`~pyvattn.errors.UnsupportedError` for a layer whose code cannot be asked.
    """
    numbers = [i for i, kind in enumerate(kinds) if kind in KEEPING]
    if not numbers:
        return ()
    dtype, layers = _known.get(model, (None, []))
    if dtype != model.dtype:
        layers = _asked(model, numbers)
        _known[model] = model.dtype, layers
    groups: list[tuple[_Tensors, list[int]]] = []
    for i, tensors in enumerate(layers):
        same = next((group for alike, group in groups if alike == tensors), None)
        if same is None:
            groups.append((tensors, [i]))
        else:
            same.append(i)
    return tuple(StateGroup(layers, tensors) for tensors, layers in groups)


@torch.no_grad()
def _asked(model: PreTrainedModel, numbers: Sequence[int]) -> list[_Tensors]:
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    mixers: dict[Any, Module] = {
        module.layer_idx: module
        for module in model.modules()
        if hasattr(module, "layer_idx") and any(isinstance(c, Conv1d) for c in module.children())
    }
    token = torch.zeros(1, 1, config.hidden_size, dtype=model.dtype, device=model.device)
    found = []
    for number in numbers:
        mixer = mixers.get(number)
        argument = None if mixer is None else _cache_argument(mixer)
        if mixer is None or argument is None:
            raise UnsupportedError(
                f"layer {number} of the model keeps a state, and its code does not tell which: "
                "use generate with VAttentionCache.for_model()"
            )
        mixer(token, **{argument: cache})
        found.append(_tensors(cache.layers[number]))
    return found


def _cache_argument(mixer: Module) -> str | None:
    names = inspect.signature(mixer.forward).parameters
    return next((n for n in ("cache", "cache_params", "past_key_values") if n in names), None)


def _tensors(layer: Any) -> _Tensors:
    """Return the states of a layer of the library's cache, without their batch."""
    return {
        tensor_name(kind, i): (tuple(tensor.shape[1:]), str(tensor.dtype))
        for kind, states in ((CONV, layer.conv_states), (RECURRENT, layer.recurrent_states))
        for i, tensor in states.items()
        if tensor is not None
    }
