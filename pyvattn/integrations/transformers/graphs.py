# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of the decode step: whether they can be, and making them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from pyvattn.arguments import check_flag
from pyvattn.attention.kernel import Kernel
from pyvattn.attention.kv_scales import scales_of
from pyvattn.attention.problem import Problem
from pyvattn.attention.registry import choose
from pyvattn.attention.rings import ring_of
from pyvattn.cuda_graphs import GraphPool
from pyvattn.errors import UnsupportedError
from pyvattn.integrations.transformers.latent import latent_dim
from pyvattn.integrations.transformers.ranks import ranks_of
from pyvattn.integrations.transformers.rope import varying

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pyvattn.cache import KVCache, Slot


def wants_graphs(model: PreTrainedModel, cache: KVCache, asked: bool | None) -> bool:
    """Return whether to capture: ``asked``, or for ``None`` whether it is possible.

    Raises :class:`~pyvattn.errors.UnsupportedError` where it is asked for and not possible,
    and :class:`~pyvattn.errors.ConfigError` for anything but True, False and None.
    """
    if asked is not None:
        check_flag("graphs", asked)
    if asked is False:
        return False
    reason = why_no_graphs(model, cache)
    if asked and reason is not None:
        raise UnsupportedError(f"graphs=True: {reason}; use graphs=False or None")
    return reason is None


def scratch_slot(cache: KVCache) -> Slot:
    """Return a slot with one token backed, which fills up captured batches."""
    slot = cache.acquire(tokens=1)
    try:
        cache.step({slot: 1})
    except BaseException:
        cache.release(slot)
        raise
    return slot


def why_no_graphs(model: PreTrainedModel, cache: KVCache) -> str | None:
    """Say why a decode step over ``cache`` cannot be captured, or return ``None``."""
    if model.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the model is on {model.device}"
    if ranks_of(model) > 1:
        return "the ranks of a model exchange tokens in every step"
    if cache.spec.max_slots < 2:
        return "one slot fills up captured batches, and the cache has only one: max_slots=2"
    for kind, _ in varying(model.config.get_text_config(decoder=True)):
        return f"rope_type={kind!r} reads the longest position on the host in every step"
    if any(part.latent_dim for part in cache.spec.parts):
        return "latent vectors are expanded for as many tokens as the longest row has"
    for kernel in decode_kernels(model, cache):
        if kernel.capturable:
            continue
        return (
            f"attention kernel {kernel.name} reads lengths on the host; the others take float16 "
            "and bfloat16: load the model in one of these"
        )
    return None


def decode_kernels(model: PreTrainedModel, cache: KVCache) -> list[Kernel]:
    """Return the attention kernels that a decode step of ``model`` takes, one for each group.

    None for groups of latent vectors, which torch attends to once the model has expanded them.
    """
    config = model.config.get_text_config(decoder=True)
    softcap = getattr(config, "attn_logit_softcapping", None) or 0.0
    sinks = any(name.endswith(".sinks") for name, _ in model.named_parameters())
    first = [group.layers[0] for group in cache.spec.groups] or [0]
    found = []
    for layer, window in zip(first, cache.spec.windows, strict=True):
        if latent_dim(cache.spec, layer):
            continue
        k, v = cache.layer(layer)
        scales = scales_of(cache)
        dtype = k.dtype if scales is None else model.dtype
        q = torch.empty(1, 1, config.num_attention_heads, k.shape[-1], dtype=dtype, device=k.device)
        row = torch.ones(1, dtype=torch.int32, device=k.device)
        starts = None if window is None else row
        own = None if scales is None else scales.of(layer)
        problem = Problem(
            q,
            k,
            v,
            row,
            row,
            True,
            1.0,
            softcap=softcap,
            starts=starts,
            scales=own,
            in_ring=ring_of(cache, layer) > 0,
        )
        found.append(choose("auto", problem, cache.spec.guard_of(layer), sinks))
    return found


class Recorder:
    """Captures decode steps as CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._graphs = GraphPool(torch, device)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run ``work`` once, then capture it; returns what replays it on the current stream.

        Raises :class:`~pyvattn.errors.UnsupportedError` where it cannot be captured.
        """
        try:
            return self._graphs.capture(work)
        except RuntimeError as error:
            raise UnsupportedError(
                f"the model's decode step cannot be captured in a CUDA graph "
                f"({str(error).strip().splitlines()[0]}): use graphs=False"
            ) from error


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Make ``device`` current for CUDA: streams, events and graphs are those of the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
