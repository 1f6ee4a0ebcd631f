# SPDX-License-Identifier: Apache-2.0
"""States of a model in the slots of a KVCache, as its layers read and write them in a pass.

A layer's states are taken out of the rows when the model first reads them and put back when it
goes on to the next layer, so that no more than one layer's are held twice. Where the slots of a
pass are known to lie side by side they are not moved at all: the model writes where they lie. In a
captured step they are known to the device alone, so states are always moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from pyvattn.integrations.transformers.parts import upload
from pyvattn.integrations.transformers.state_shapes import CONV, KEEPING, RECURRENT, tensor_name
from pyvattn.integrations.transformers.states import StateLayers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.cache_utils import CacheLayerMixin

    from pyvattn.cache import KVCache


class SlotStates(StateLayers):
    """The states of whichever slots a pass is for."""

    def __init__(self, kv: KVCache, config: PreTrainedConfig, kinds: Sequence[str]) -> None:
        super().__init__(config, kinds)
        numbers = [i for i, kind in enumerate(kinds) if kind in KEEPING]
        self._slots: dict[int, SlotStateLayer] = {
            number: SlotStateLayer(self, kv.state(i), self._states)
            for i, number in enumerate(numbers)
        }
        self.layers |= cast("dict[int, CacheLayerMixin]", self._slots)
        self._rows: slice | Tensor = slice(0)
        self._open: SlotStateLayer | None = None

    def begin(self, slots: Sequence[int], device: torch.device, fresh: bool) -> None:
        """Have the next pass be for ``slots``, whose first tokens it runs where it is ``fresh``."""
        first, count = slots[0], len(slots)
        together = list(slots) == list(range(first, first + count))
        self._begin(slice(first, first + count) if together else upload(slots, device), fresh)

    def begin_step(self, rows: Tensor) -> None:
        """Have the next pass add a token to each slot of ``rows``, ``[batch]`` on the device.

        The host reads none of them, and what they say when the pass is replayed is what it is for
        then. One that is there more than once ends with the states of any of these.
        """
        self._begin(rows, fresh=False)

    def _begin(self, rows: slice | Tensor, fresh: bool) -> None:
        self._rows, self._open = rows, None
        for layer in self._slots.values():
            layer.begin(fresh)

    def take(self, layer: SlotStateLayer, stored: Tensor) -> Tensor:
        """Return the rows of the pass, ``[rows, …]``: a view where the slots lie side by side."""
        if self._open is not layer:
            self.put_back()
            self._open = layer
        return stored[self._rows]

    def put_back(self) -> None:
        """Write what the model has made of the states that were taken last."""
        if self._open is not None:
            layer, self._open = self._open, None
            layer.put_back(None if isinstance(self._rows, slice) else self._rows)


class SlotStateLayer(LinearAttentionLayer):
    """One layer's states, as the library has them, of the slots of a pass."""

    def __init__(self, states: SlotStates, stored: dict[str, Tensor], count: int) -> None:
        super().__init__(number_of_states=count)
        conv, recurrent = (_numbered(stored, kind, count) for kind in (CONV, RECURRENT))
        self._taken = [_Taken(self, states, each) for each in (conv, recurrent)]
        library: Any = self  # which declares these as what they are before the first token
        library.conv_states, library.recurrent_states = self._taken
        for i in range(count):
            self.is_conv_states_initialized[i] = i in conv
            self.conv_kernel_size[i] = conv[i].shape[-1] if i in conv else None
            self.is_recurrent_states_initialized[i] = i in recurrent
        some = next(iter(stored.values()))
        library.device, library.dtype = some.device, some.dtype

    def begin(self, fresh: bool) -> None:
        """Forget the slots of the last pass; those of a ``fresh`` one have no state yet."""
        for taken in self._taken:
            taken.clear()
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), not fresh)

    def put_back(self, rows: Tensor | None) -> None:
        """Write what was taken of ``rows`` to where it lies; ``None``: it lies there."""
        for taken in self._taken:
            if rows is not None:
                for i, tensor in taken.items():
                    taken.stored[i].index_copy_(0, rows, tensor)
            taken.clear()


def _numbered(stored: dict[str, Tensor], kind: str, count: int) -> dict[int, Tensor]:
    names = {i: tensor_name(kind, i) for i in range(count)}
    return {i: stored[name] for i, name in names.items() if name in stored}


class _Taken(dict[int, Tensor]):
    """States by their number in a layer, taken out of the rows when they are first read."""

    def __init__(
        self, layer: SlotStateLayer, states: SlotStates, stored: dict[int, Tensor]
    ) -> None:
        super().__init__()
        self.stored = stored
        self._layer = layer
        self._states = states

    def __missing__(self, number: int) -> Tensor:
        self[number] = taken = self._states.take(self._layer, self.stored[number])
        return taken
