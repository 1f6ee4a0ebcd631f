# SPDX-License-Identifier: Apache-2.0
"""Which tensors the layers of a model keep as states: their modules are asked, with a few tokens.

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
from pyvattn.integrations.transformers.states import HYBRIDS
from pyvattn.state_group import StateGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Kinds of layers that keep a state.
KEEPING = frozenset({"linear_attention", "conv"}) | HYBRIDS
CONV, RECURRENT = "conv", "recurrent"

# Fewer than a convolution reaches back, so that it needs those of the piece before.
_FEW = 2
# How far states that should be alike lie apart in 16 bits, of their norm.
_ROUNDING = 0.05

_Tensors = dict[str, tuple[tuple[int, ...], str]]
_known: WeakKeyDictionary[Module, tuple[torch.dtype, list[_Tensors]]] = WeakKeyDictionary()


def tensor_name(kind: str, number: int) -> str:
    """Return the name of a layer's state of that kind, of which most layers have one."""
    return kind if number == 0 else f"{kind}_{number}"


def state_groups(model: PreTrainedModel, kinds: Sequence[str]) -> tuple[StateGroup, ...]:
    """Return the states of ``model``, whose layers are of these kinds, in groups that are alike.

    Raises :class:`~pyvattn.errors.UnsupportedError` for a layer whose code cannot be asked, and
    for one that cannot go on from a state with several tokens, as prompts in chunks do.
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
    mixers = _mixers(model)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, 2 * _FEW, config.hidden_size, generator=generator, device="cpu")
    tokens = drawn.to(model.device, model.dtype)
    whole, pieces = DynamicCache(config=config), DynamicCache(config=config)
    # Layer by layer, as in a pass: code may ask what the last layer has seen.
    for cache, split in ((whole, [tokens]), (pieces, tokens.split(_FEW, dim=1))):
        for piece in split:
            for number in numbers:
                if number not in mixers:
                    raise UnsupportedError(
                        f"layer {number} of the model keeps a state, and its code does not tell "
                        "which: use generate with VAttentionCache.for_model()"
                    )
                mixer, argument = mixers[number]
                mixer(piece, **{argument: cache})
    for number in numbers:
        name = type(mixers[number][0]).__name__
        _check_alike(name, whole.layers[number], pieces.layers[number])
    return [_tensors(whole.layers[number]) for number in numbers]


def _mixers(model: PreTrainedModel) -> dict[Any, tuple[Module, str]]:
    """Return the modules that keep a state, by layer, and how each calls the cache."""
    found: dict[Any, tuple[Module, str]] = {}
    for module in model.modules():
        if hasattr(module, "layer_idx") and any(isinstance(c, Conv1d) for c in module.children()):
            names = inspect.signature(module.forward).parameters
            for name in ("cache", "cache_params", "past_key_values"):
                if name in names:
                    found[module.layer_idx] = module, name
                    break
    return found


def _check_alike(mixer: str, whole: Any, pieces: Any) -> None:
    """Refuse code that made another state of the same tokens in two pieces."""
    for name in ("conv_states", "recurrent_states"):
        one, two = getattr(whole, name), getattr(pieces, name)
        for i, tensor in one.items():
            if tensor is None:
                continue
            apart = (tensor.float() - two[i].float()).norm()
            if not apart <= _ROUNDING * tensor.float().norm():
                raise UnsupportedError(
                    f"{mixer} of the library begins its state anew with every several tokens, so "
                    "no prompt can be run in chunks: use generate with VAttentionCache.for_model()"
                )


def _tensors(layer: Any) -> _Tensors:
    """Return the states of a layer of the library's cache, without their batch."""
    return {
        tensor_name(kind, i): (tuple(tensor.shape[1:]), str(tensor.dtype))
        for kind, states in ((CONV, layer.conv_states), (RECURRENT, layer.recurrent_states))
        for i, tensor in states.items()
        if tensor is not None
    }
