# SPDX-License-Identifier: Apache-2.0
"""Linear layers that read one input, Q, K and V or gate and up, as one product of matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear

from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The names that models of the library give to layers which read one input.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))


class FusedProjections:
    """The layers of a model that are multiplied together, in their places while an engine runs it.

    The weights of such layers move to one tensor, once and for good; those of the model become
    views of it, so nothing is held twice, but for the weights of one block while they move. Their
    values stay. Layers that are not plain ``torch.nn.Linear`` without hooks, as those of adapters
    and quantised ones, stay as they are.

    Raises :class:`~pyvattn.errors.UnsupportedError` for a model without any that it can fuse.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._handed = _Handed()
        # The module that holds a layer, the layer's name in it, and what takes its place.
        self._places: list[tuple[Module, str, Module]] = []
        for module in model.modules():
            for names in _TOGETHER:
                layers = [module._modules.get(name) for name in names]
                fusable = [layer for layer in layers if isinstance(layer, Linear)]
                fusable = [layer for layer in fusable if _is_plain(layer)]
                if len(fusable) == len(names) and _are_alike(fusable):
                    fused = self._fused(fusable)
                    self._places += zip([module] * len(names), names, fused, strict=True)
        if not self._places:
            raise UnsupportedError(
                f"fuse_projections=True: {type(model).__name__} has no {_listed()} side by side "
                "that are plain torch.nn.Linear without hooks (adapters and quantised layers are "
                "not): use fuse_projections=False"
            )
        if model.device.type == "cuda":
            # The cache takes its memory from the device, not from what torch keeps.
            torch.cuda.empty_cache()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the fused layers be the model's, until the end of the block."""
        before = [(module, name, module._modules[name]) for module, name, _ in self._places]
        try:
            for module, name, fused in self._places:
                module._modules[name] = fused
            yield
        finally:
            for module, name, layer in before:
                module._modules[name] = layer
            self._handed.clear()

    def _fused(self, layers: Sequence[Linear]) -> list[Module]:
        """Join the weights of ``layers``; returns what takes the place of each."""
        weight = _join([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        first = _First(weight, _join(biases) if biases else None, layers, self._handed)
        last = len(layers) - 1
        rest = [_Rest(layers[at], at, first, self._handed, at == last) for at in range(1, last + 1)]
        return [first, *rest]


class _Handed:
    """What the last product of several layers left for those after the first."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.by: Module | None = None
        self.read: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()


class _First(Module):
    """Multiplies for all; returns its own part."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, layers: Sequence[Linear], handed: _Handed
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.handed = weight, bias, handed
        self.widths = [layer.out_features for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        parts = linear(x, self.weight, self.bias).split(self.widths, dim=-1)
        self.handed.by, self.handed.read, self.handed.parts = self, x, parts
        own: Tensor = parts[0]
        return own


class _Rest(Module):
    """Takes its part where the first had the same input, and else multiplies itself."""

    def __init__(
        self, layer: Linear, at: int, first: _First, handed: _Handed, is_last: bool
    ) -> None:
        super().__init__()
        self.layer, self.at, self.handed, self.is_last = layer, at, handed, is_last
        # No part of this module, only who to expect.
        self.first = (first,)

    def forward(self, x: Tensor) -> Tensor:
        handed = self.handed
        if handed.by is not self.first[0] or handed.read is not x:
            found: Tensor = self.layer(x)
            return found
        part = handed.parts[self.at]
        if self.is_last:
            handed.clear()
        return part


def _is_plain(layer: Linear) -> bool:
    """Whether a layer does nothing but multiply by a tensor of its own, and add another."""
    if type(layer) is not Linear or "forward" in vars(layer):
        return False
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False
    # Tensors of other classes are quantised ones; those of "meta" are offloaded.
    values = [each.data for each in (layer.weight, layer.bias) if each is not None]
    return all(type(each) is Tensor and each.is_contiguous() for each in values) and not any(
        each.is_meta for each in values
    )


def _are_alike(layers: Sequence[Linear]) -> bool:
    kinds = {
        (each.in_features, each.weight.dtype, each.weight.device, each.bias is None)
        for each in layers
    }
    return len(kinds) == 1


def _join(parameters: Sequence[Tensor]) -> Tensor:
    """Return one tensor of all rows, of which the parameters are views afterwards."""
    values = [parameter.data for parameter in parameters]
    rows = [len(value) for value in values]
    if _follow(values):
        joined = values[0].as_strided((sum(rows), *values[0].shape[1:]), values[0].stride())
    else:
        joined = torch.cat(values)
    for parameter, part in zip(parameters, joined.split(rows), strict=True):
        parameter.data = part
    return joined


def _follow(values: Sequence[Tensor]) -> bool:
    """Whether each lies behind the one before, in one storage: another engine joined them."""
    return all(
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.data_ptr() + one.nbytes == other.data_ptr()
        for one, other in pairwise(values)
    )


def _listed() -> str:
    return ", or ".join(" and ".join((", ".join(names[:-1]), names[-1])) for names in _TOGETHER)
