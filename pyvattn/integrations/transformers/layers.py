# SPDX-License-Identifier: Apache-2.0
"""One layer of a contiguous cache, as the library's caches have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from pyvattn.errors import UnsupportedError

if TYPE_CHECKING:
    from pyvattn.integrations.transformers.base import ContiguousCache


class Layer(CacheLayerMixin):
    """A layer of ``cache``, whose rows and lengths are those of all its layers.

    ``keys`` and ``values`` are ``[rows, kv_heads, tokens, head_dim]``, views of the cache where
    rows hold no padding and lie side by side, copies with zeros for padding elsewhere.
    ``None`` before the first forward pass.
    """

    is_croppable = True
    supports_early_init = False

    def __init__(self, cache: ContiguousCache, index: int) -> None:
        # CacheLayerMixin would set keys and values, which are read from the cache here.
        self._cache = cache
        self._index = index

    @property
    def keys(self) -> Tensor | None:
        """The keys of every token seen."""
        return self._cache.read_layer(self._index)[0]

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        raise _read_only("keys")

    @property
    def values(self) -> Tensor | None:
        """The values of every token seen."""
        return self._cache.read_layer(self._index)[1]

    @values.setter
    def values(self, value: Tensor | None) -> None:
        raise _read_only("values")

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]  # the library assigns it
        """Whether there are rows."""
        return bool(self._cache.is_initialized)

    @property
    def is_sliding(self) -> bool:
        """Whether the library's masks are for the layer's window alone."""
        return self._cache._masked_window(self._index) is not None

    @property
    def dtype(self) -> torch.dtype:
        """The type of K and V."""
        dtype: torch.dtype = self._cache.kv.layer(self._cache._kept_layer(self._index))[0].dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where K and V lie."""
        return self._cache.device

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the tensors exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append K and V of this layer; return all that the layer holds."""
        return self._cache.update(key_states, value_states, self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys a mask covers, and where the first of them stands."""
        return self._cache.get_mask_sizes(query_length, self._index)

    def get_seq_length(self) -> int:
        """Return the tokens that this layer holds."""
        return self._cache.get_seq_length(self._index)

    def get_max_length(self) -> int:
        """Return the most tokens that the layer can hold."""
        return self._cache.get_max_length(self._index)

    def reset(self) -> None:
        """Forget every token, once all layers were told to."""
        self._all_layers("reset")

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last positions, once for all layers."""
        self._all_layers("crop", tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, once for all layers."""
        self._all_layers("reorder_cache", beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat the rows, once for all layers."""
        self._all_layers("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at ``indices``, once for all layers."""
        self._all_layers("batch_select_indices", indices)

    def _all_layers(self, name: str, *arguments: Any) -> None:
        change = name, tuple(_plain(argument) for argument in arguments)
        self._cache.changes.ask(
            self._cache._kept_layer(self._index),
            change,
            lambda: getattr(self._cache, name)(*arguments),
        )


class HybridLayer(Layer, LinearAttentionCacheLayerMixin):  # type: ignore[misc]  # fields there
    """A layer that keeps a state besides, which is ``state``, a layer of the library's own."""

    def __init__(self, cache: ContiguousCache, index: int, state: Any) -> None:
        super().__init__(cache, index)
        self._state = state

    def __getattr__(self, name: str) -> Any:
        """Return what the layer of the state has: states by number, and what is known of them."""
        if name == "_state":
            raise AttributeError(name)
        return getattr(self._state, name)

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]  # which is a constant without states
        """Whether the state could be put back."""
        croppable: bool = self._state.is_croppable
        return croppable

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the state is made by the layer that holds it."""

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Take the new inputs of a convolution; return them with those before."""
        states: Tensor = self._state.update_conv_state(conv_states, state_idx, **kwargs)
        return states

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Take a new recurrent state; return where it is kept."""
        states: Tensor = self._state.update_recurrent_state(recurrent_states, state_idx, **kwargs)
        return states

    def activate_past_recording(self) -> None:
        """Have the state keep what it needs to be put back."""
        self._state.activate_past_recording()


class LayerChanges:
    """Changes that are asked of the layers one by one, and made once for all of them.

    Rows and lengths are those of the whole cache, so the first layer that is asked makes the
    change and the others must be asked for the same before the next forward pass.
    """

    def __init__(self, layers: int) -> None:
        self._made: list[tuple[str, Any]] = []
        self._asked = [0] * layers

    def ask(self, layer: int, change: tuple[str, Any], make: Callable[[], None]) -> None:
        """Note that ``layer`` was asked for ``change``; the first time, ``make`` it."""
        behind = self._asked[layer] < len(self._made)
        if behind and self._made[self._asked[layer]] != change:
            raise _unequal(f"layer {layer} got {change[0]}{change[1]}")
        if not behind:
            make()
            self._made.append(change)
        self._asked[layer] += 1
        if min(self._asked) == len(self._made):
            self.forget()

    def check(self) -> None:
        """Raise where some layers were changed and others not."""
        if self._made:
            name, arguments = self._made[-1]
            left = [layer for layer, asked in enumerate(self._asked) if asked < len(self._made)]
            raise _unequal(f"{name}{arguments} did not reach layers {left}")

    def forget(self) -> None:
        """Start over, with all layers equal."""
        self._made.clear()
        self._asked = [0] * len(self._asked)


def _plain(argument: Any) -> Any:
    """Return ``argument`` as something that can be compared."""
    if isinstance(argument, Tensor):
        return argument.tolist()
    return list(argument) if isinstance(argument, Sequence) else argument


def _unequal(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"all layers of a contiguous cache hold the same tokens, and {what}: call the method of "
        "the cache, or that of every layer"
    )


def _read_only(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name} of a contiguous cache cannot be replaced, since they lie in mapped memory: use "
        "crop(), reorder_cache() or batch_select_indices()"
    )
