# SPDX-License-Identifier: Apache-2.0
"""Having a model attend through pyvattn for a while, and leaving it as it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from pyvattn.errors import UnsupportedError
from pyvattn.integrations.transformers.interface import ATTENTION

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Models that use the library's attention interface and whose code reads the cache besides: it
# changes K and V that are cached, makes masks of them, or has masks and biases of its own.
_READ_THE_CACHE = frozenset({"diffllama", "doge", "git", "inkling_text", "jetmoe", "moshi"})
# Of those with attention of their own the ones that take K and V as contiguous tensors alone.
_NO_VIEWS = frozenset({"gpt_neox_japanese"})


@dataclass
class _Switched:
    """A model that attends through pyvattn: for how many, and how it did before."""

    before: list[tuple[PreTrainedConfig, str | None]]
    holders: int = 0


_switched: weakref.WeakKeyDictionary[PreTrainedModel, _Switched] = weakref.WeakKeyDictionary()


def attends_itself(model: PreTrainedModel) -> bool:
    """Whether ``model`` attends to what a cache returns with code that nothing can replace."""
    return _kind(model) in _READ_THE_CACHE or not model._can_set_attn_implementation()


def takes_no_views(model: PreTrainedModel) -> bool:
    """Whether the attention of ``model`` takes K and V as contiguous tensors alone."""
    return _kind(model) in _NO_VIEWS


def attend_through(model: PreTrainedModel, holder: object) -> Callable[[], None]:
    """Have ``model`` attend through pyvattn for ``holder``; returns what ends that.

    It may be called again, and ends by itself when ``holder`` is garbage. After the last of its
    holders the model attends as before the first, unless its attention was set otherwise in
    between.

    Raises :class:`~pyvattn.errors.UnsupportedError` for a model with attention of its own, which
    stays as it was.
    """
    if attends_itself(model):
        raise _no_interface(model)
    switched = _switched.setdefault(model, _Switched(_implementations(model)))
    switched.holders += 1
    release = weakref.finalize(holder, _release, weakref.ref(model))
    release.atexit = False
    try:
        model.set_attn_implementation(ATTENTION)
        if model.config.get_text_config(decoder=True)._attn_implementation != ATTENTION:
            raise _no_interface(model)
    except BaseException:
        release()
        raise
    return release


def _release(reference: weakref.ref[PreTrainedModel]) -> None:
    model = reference()
    if model is None:
        return
    switched = _switched[model]
    switched.holders -= 1
    if switched.holders:
        return
    del _switched[model]
    for config, before in switched.before:
        if config._attn_implementation == ATTENTION:
            # The public setter would set the configs beneath this one as well.
            config._attn_implementation_internal = before


def _implementations(model: PreTrainedModel) -> list[tuple[PreTrainedConfig, str | None]]:
    """Return each config of ``model`` with its attention implementation."""
    configs = {id(config): config for config in _configs(model.config)}
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            configs.update({id(config): config for config in _configs(module.config)})
    return [(config, config._attn_implementation) for config in configs.values()]


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            yield from _configs(inner)


def _kind(model: PreTrainedModel) -> str:
    kind: str = model.config.get_text_config(decoder=True).model_type
    return kind


def _no_interface(model: PreTrainedModel) -> UnsupportedError:
    return UnsupportedError(
        f"{type(model).__name__} attends with code of its own, to one batch of rows, so tokens of "
        "several requests cannot be run together: use generate with VAttentionCache.for_model()"
    )
