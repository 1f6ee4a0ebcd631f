# SPDX-License-Identifier: Apache-2.0
"""What both caches have in common: the library's Cache over a KVCache."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from pyvattn.arguments import check_type, check_whole
from pyvattn.errors import UnsupportedError
from pyvattn.integrations.transformers.compiled import outside_graphs
from pyvattn.integrations.transformers.forward import ForwardPass, WindowedPass
from pyvattn.integrations.transformers.interface import ATTENTION, CacheLength, OtherMask
from pyvattn.integrations.transformers.layers import HybridLayer, Layer, LayerChanges
from pyvattn.integrations.transformers.states import StateLayers

if TYPE_CHECKING:
    from pyvattn.cache import KVCache


class ContiguousCache(Cache):
    """A library cache whose tokens lie in the slots of a :class:`pyvattn.KVCache`.

    Every forward pass begins with :meth:`begin`, which the attention
    implementation ``"pyvattn"`` calls with the padding mask.
    """

    def __init__(self, kv: KVCache) -> None:
        super().__init__(layers=[Layer(self, index) for index in range(kv.spec.kept_layers)])
        self.kv = kv
        self._states = StateLayers(None, ())
        # Of models with states: which of the layers in the cache each of theirs is.
        self._kept: dict[int, int] = {}
        self.changes = LayerChanges(kv.spec.kept_layers)
        self._pass: ForwardPass | None = None
        # What the last mask that the library asked for became.
        self._mask: ForwardPass | OtherMask | None = None
        # The windows of the masks that a pass was asked for; one that comes again begins another.
        self._masks: set[int | None] = set()

    def _kept_layer(self, number: int) -> int:
        """Return which layer of the KVCache a layer of the model is."""
        return self._kept.get(number, -1) if self._kept else number

    def _hold_states(self, states: StateLayers) -> None:
        """Have the layers of a model, some of which keep a state, in its order."""
        self._states, self._kept, self.layers = states, {}, []
        alone = len(states.layers) - len(states.hybrids)
        for number in range(self.kv.spec.kept_layers + alone):
            state = states.layers.get(number)
            if state is not None and number not in states.hybrids:
                self.layers.append(state)
                continue
            if states.layers:
                self._kept[number] = len(self._kept)
            layer = Layer(self, number) if state is None else HybridLayer(self, number, state)
            self.layers.append(layer)

    @property
    def device(self) -> torch.device:
        """Where K and V lie."""
        device: torch.device = self.kv.layer(0)[0].device
        return device

    @abstractmethod
    def begin(self, batch_size: int, queries: int, padding_mask: Tensor | None) -> ForwardPass:
        """Back the tokens of the coming forward pass and say where they go.

        ``padding_mask`` is boolean, ``[batch, tokens seen and new]``, true for real tokens.
        """

    @abstractmethod
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens seen so far, with padding, as the library counts them."""

    def read_layer(self, layer: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the K and V of a layer as the library has them; nothing before the first pass."""
        return None, None

    def _masked_window(self, layer: int) -> int | None:
        """Return the window of a layer that gets no more than that; ``None`` for all tokens."""
        return None

    @outside_graphs
    def mask(
        self,
        batch_size: int,
        queries: int,
        padding_mask: Tensor | None,
        window: int | None,
        chunked: bool = False,
    ) -> ForwardPass | WindowedPass | OtherMask:
        """Return what the layers get in place of a mask: the pass, which begins with the first.

        ``window`` is that of a causal mask, or its chunks where it is ``chunked``, 0 where it has
        none, and ``None`` for a mask of another kind. A model may make masks that no layer uses,
        so that is refused only where a layer attends with it.
        """
        tokens = None if window is None else check_whole("window", window, 0)
        if self._pass is None or tokens in self._masks:
            self._masks.clear()
        self._masks.add(tokens)
        made = OtherMask() if tokens is None else self.begin(batch_size, queries, padding_mask)
        self._mask = self._pass or made
        if tokens and isinstance(made, ForwardPass):
            return WindowedPass(made, tokens, chunked)
        return made

    def finish(self) -> None:
        """Note that the last layer of the pass is stored."""
        self._pass = None

    @outside_graphs
    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new tokens; returns its whole ``[slots, tokens, kv_heads, dim]`` K and V.

        The library hands these to the attention function, which reads the rows
        of the batch in them.
        """
        if isinstance(self._mask, OtherMask):
            self._mask.refuse()
        check_type("key_states", key_states, Tensor)
        queries = key_states.shape[2] if key_states.dim() == 4 else None
        if self._pass is None or self._mask is None or self._pass.queries != queries:
            raise UnsupportedError(
                f"the model does not attend through pyvattn: call model.set_attn_implementation"
                f"({ATTENTION!r}), and pass a padding mask of [batch, tokens] or none"
            )
        layer = self._kept_layer(layer_idx)
        stored = self._pass.store(layer, key_states, value_states)
        if layer == self.kv.spec.kept_layers - 1:
            self.finish()
        return stored

    @outside_graphs
    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the KV length after ``query_length`` more tokens, and offset 0.

        A forward pass begins here: pyvattn's mask function answers with :meth:`mask`, and where
        another asks, nothing can be stored.
        """
        new = check_whole("query_length", query_length)
        self._mask = None
        return CacheLength.of(self, self.get_seq_length() + new), 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return the most tokens that a row can hold."""
        return self.kv.spec.max_tokens
