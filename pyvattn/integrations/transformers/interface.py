# SPDX-License-Identifier: Apache-2.0
"""The attention implementation ``"pyvattn"``, as the library's registries want it.

In one forward pass the library asks the cache for the sizes of the mask, makes
the mask once, then calls each layer: ``cache.update``, then attention. The
cache answers the first question with a number that knows its cache
(:class:`CacheLength`), so the mask function can begin the pass with the padding
at hand, and the "mask" that every layer gets is the :class:`ForwardPass`.

With any other cache, or none, the implementation is the library's ``"sdpa"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from pyvattn.errors import UnsupportedError
from pyvattn.integrations.transformers.forward import ForwardPass, Scores, WindowedPass
from pyvattn.integrations.transformers.masks import is_chunked, mask_window
from pyvattn.integrations.transformers.rope import check_rope

if TYPE_CHECKING:
    from torch.nn import Module

    from pyvattn.integrations.transformers.base import ContiguousCache

ATTENTION = "pyvattn"

# Arguments of attention functions that change the result in ways the cache's
# attention does not know.
_REFUSED = ("position_bias",)


class CacheLength(int):
    """A mask's KV length that knows the cache it is of."""

    cache: ContiguousCache

    @classmethod
    def of(cls, cache: ContiguousCache, length: int) -> CacheLength:
        """Return ``length`` as a length of ``cache``."""
        number = cls(length)
        number.cache = cache
        return number


class OtherMask:
    """Stands for a mask that only a mask can do, which a layer may or may not attend with."""

    def refuse(self) -> NoReturn:
        """Say that a layer does."""
        raise UnsupportedError(
            "the contiguous cache does causal attention with padding, within sliding windows and "
            "chunks, and a layer of the model attends with another mask: use the library's "
            "DynamicCache"
        )


def register_attention() -> None:
    """Make ``"pyvattn"`` known to the library."""
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor | ForwardPass | WindowedPass | OtherMask | None:
    """Begin the forward pass of a contiguous cache; for any other, make a mask."""
    if isinstance(kv_length, CacheLength):
        cache = kv_length.cache
        check_rope(options["config"], cache.get_max_length())
        size = options.get("local_size")
        if is_chunked(mask_function, size):
            return cache.mask(batch_size, q_length, attention_mask, size, chunked=True)
        return cache.mask(batch_size, q_length, attention_mask, mask_window(mask_function, size))
    mask: Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **options,
    )
    return mask


def _attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | ForwardPass | WindowedPass | OtherMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend to the contiguous cache; where there is none, as the library does."""
    if isinstance(attention_mask, OtherMask):
        attention_mask.refuse()
    if isinstance(attention_mask, (ForwardPass, WindowedPass)):
        _refuse(dropout, options)
        asked = Scores(
            attention_mask.window,
            options.get("softcap"),
            options.get("s_aux"),
            attention_mask.chunked,
        )
        _check_window(asked.window, options.get("sliding_window"))
        step = attention_mask.step if isinstance(attention_mask, WindowedPass) else attention_mask
        return step.attend(module, query, key, value, scaling, asked), None
    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )
    return result


def _check_window(of_mask: int, of_layer: int | None) -> None:
    """Refuse a layer that asks for a window other than that of its mask.

    The library's own implementations follow one or the other.
    """
    if of_layer is not None and of_layer != of_mask:
        raise UnsupportedError(
            f"a layer of the model asks for sliding_window={of_layer} with a mask that has "
            f"{of_mask or 'none'}: use the library's DynamicCache"
        )


def _refuse(dropout: float, options: dict[str, Any]) -> None:
    asked = [name for name in _REFUSED if options.get(name) is not None]
    if dropout:
        asked.append(f"dropout={dropout} (call model.eval())")
    if options.get("output_attentions"):
        asked.append("output_attentions")
    if options.get("is_causal") is False:
        asked.append("is_causal=False")
    if asked:
        raise UnsupportedError(
            f"the contiguous cache's attention cannot do {', '.join(asked)}: leave it out, or use "
            "the library's DynamicCache with attn_implementation='eager'"
        )
