# SPDX-License-Identifier: Apache-2.0
"""Decoder layers compiled by torch.compile, in their places while an engine runs the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module, ModuleList

from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompiledLayers:
    """The decoder layers of a model, compiled: norms, rotary embeddings and activations fused.

    The layers share what is compiled, once for each kind of layer and of batch, so it takes as
    long for 80 layers as for 2. Storing and attending stay outside (``outside_graphs``).

    Raises :class:`~pyvattn.errors.UnsupportedError` for a model without a list of layers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = getattr(model.get_decoder(), "layers", None)
        if not isinstance(layers, ModuleList) or not len(layers):
            raise UnsupportedError(
                f"compile=True: {type(model).__name__} has no list of decoder layers to compile: "
                "use compile=False"
            )
        self._compiled = [(layer, torch.compile(layer.forward)) for layer in layers]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model's layers be the compiled ones, until the end of the block.

        Raises :class:`~pyvattn.errors.UnsupportedError` where the compiler fails.
        """
        before = [_take(layer, compiled) for layer, compiled in self._compiled]
        try:
            # Layers differ in an integer, their number: without this each is compiled anew.
            with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
                yield
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            said = next(iter(str(cause).strip().splitlines()), "")
            raise UnsupportedError(
                f"compile=True: {type(cause).__name__}: {said}: use compile=False"
            ) from error
        finally:
            for (layer, _), forward in zip(self._compiled, before, strict=True):
                _put_back(layer, forward)


def _take(layer: Module, compiled: Callable[..., Any]) -> Callable[..., Any] | None:
    """Give a layer a forward of its own; returns the one that it had, if any."""
    before: Callable[..., Any] | None = layer.__dict__.get("forward")
    layer.__dict__["forward"] = compiled
    return before


def _put_back(layer: Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del layer.__dict__["forward"]
    else:
        layer.__dict__["forward"] = forward
