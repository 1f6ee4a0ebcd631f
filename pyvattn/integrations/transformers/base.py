"""What both caches have in common: the library's Cache over a KVCache."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from pyvattn.errors import UnsupportedError
from pyvattn.integrations.transformers.forward import ForwardPass
from pyvattn.integrations.transformers.interface import ATTENTION, CacheLength

if TYPE_CHECKING:
    from pyvattn.cache import KVCache


class ContiguousCache(Cache):
    """A library cache whose tokens lie in the slots of a :class:`pyvattn.KVCache`.

    Every forward pass begins with :meth:`begin`, which the attention
    implementation ``"pyvattn"`` calls with the padding mask.
    """

    def __init__(self, kv: KVCache) -> None:
        super().__init__(layers=[_Layer(self, index) for index in range(kv.spec.layers)])
        self.kv = kv
        self._pass: ForwardPass | None = None

    @abstractmethod
    def begin(
        self, batch_size: int, queries: int, padding_mask: Tensor | None, device: torch.device
    ) -> ForwardPass:
        """Back the tokens of the coming forward pass and say where they go.

        ``padding_mask`` is boolean, ``[batch, tokens seen and new]``, true for real tokens.
        """

    @abstractmethod
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens seen so far, with padding, as the library counts them."""

    def finish(self) -> None:
        """Note that the last layer of the pass is stored."""
        self._pass = None

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
        if self._pass is None or self._pass.queries != key_states.shape[2]:
            raise UnsupportedError(
                f"the model does not attend through pyvattn: call model.set_attn_implementation"
                f"({ATTENTION!r}), and pass a padding mask of [batch, tokens] or none"
            )
        self._pass.store(layer_idx, key_states, value_states)
        if layer_idx == len(self.layers) - 1:
            self.finish()
        k, v = self.kv.layer(layer_idx)
        return k, v

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the KV length after ``query_length`` more tokens, and offset 0."""
        return CacheLength.of(self, self.get_seq_length() + query_length), 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return the most tokens that a row can hold."""
        return self.kv.spec.max_tokens

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise UnsupportedError(
            "a contiguous cache cannot be copied: its tensors are mapped memory. Run the shared "
            "prompt once for each copy"
        )


class _Layer(CacheLayerMixin):
    """One layer as the library sees it; the cache itself does the work for all."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, cache: ContiguousCache, index: int) -> None:
        CacheLayerMixin.__init__(self)
        self._cache = cache
        self._index = index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the tensors exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._cache.update(key_states, value_states, self._index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.get_mask_sizes(query_length, self._index)

    def get_seq_length(self) -> int:
        return self._cache.get_seq_length(self._index)

    def get_max_length(self) -> int:
        return self._cache.get_max_length(self._index)
