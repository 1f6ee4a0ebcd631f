# SPDX-License-Identifier: Apache-2.0
"""Many prompts through one cache in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from pyvattn.arguments import check_type
from pyvattn.cache import KVCache
from pyvattn.errors import ArgumentError, ConfigError, SpecError
from pyvattn.integrations.transformers.engine import Engine
from pyvattn.integrations.transformers.float8 import GivenScales
from pyvattn.integrations.transformers.request import Request, check_count
from pyvattn.integrations.transformers.spec import (
    check_cache_options,
    check_loaded,
    check_model,
    spec_for,
)
from pyvattn.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] | None = None,
    generation_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
    cache: KVCache | None = None,
    memory: int | str | None = None,
    max_batch: int = 64,
    max_prefill_tokens: int = 8192,
    graphs: bool | None = None,
    compile: bool = False,
    fuse_projections: bool = False,
    prefix_reuse: bool = True,
    salt: bytes | str = b"",
    kv_dtype: str | None = None,
    kv_scales: GivenScales = None,
    preemption: str = "auto",
    swap_memory: int | str = "8GiB",
    **cache_options: Any,
) -> list[Request]:
    """Generate from lists of token ids by continuous batching, as the library's method does.

    Returns a request for each prompt, in their order; ``request.output`` are its new tokens,
    with the end-of-sequence token where the model generated it, and ``request.reused`` counts
    the tokens of its prompt whose K and V other requests had.

    ``generation_config`` is one for all or one for each prompt, by default the model's own. It
    says which tokens end a request (``eos_token_id``) and how tokens are chosen: greedily or
    sampled, by the library's logits processors. ``max_new_tokens`` is one number or one for each
    prompt, by default that of the config.

    The tokens lie in ``cache``, which stays open, or in one that is opened for the call with
    ``memory`` bytes (or text such as ``"20GiB"``) of physical memory at most; ``cache_options``
    (``driver``, ``page_size``, ``layout``) are those of :class:`pyvattn.KVCache`.
    ``max_batch``, ``max_prefill_tokens``, ``graphs``, ``compile``, ``fuse_projections``,
    ``prefix_reuse``, ``salt``, ``preemption`` and ``swap_memory`` are those of :class:`Engine`,
    which is what to use for requests that come one by one.

    ``kv_dtype="float8_e4m3fn"`` keeps K and V in float8, half of bfloat16, with ``kv_scales`` as
    :class:`Engine` takes them.

    Afterwards the model attends as it did before.

    Raises :class:`~pyvattn.errors.SpecError`, :class:`~pyvattn.errors.LengthError`,
    :class:`~pyvattn.errors.ConfigError` or :class:`~pyvattn.errors.UnsupportedError` before
    anything runs, and :class:`~pyvattn.errors.OutOfMemory` where a request does not fit alone.
    """
    check_model(model)
    check_cache_options(cache_options)
    check_type("cache", cache, KVCache, type(None))
    prompts = _prompts(prompts)
    max_batch = check_count("max_batch", max_batch)
    configs = _configs(model, prompts, generation_config)
    limits = _limits(prompts, max_new_tokens, configs)
    if not prompts:
        return []
    owned = None
    if cache is None:
        cache = owned = _open(model, prompts, limits, memory, max_batch, kv_dtype, cache_options)
    elif memory is not None or kv_dtype is not None or cache_options:
        named = {"memory": memory, "kv_dtype": kv_dtype, **cache_options}
        given = ", ".join(name for name, value in named.items() if value is not None)
        raise ConfigError(f"cache is given, so {given} can change nothing: leave out one of them")
    try:
        with Engine(
            model,
            cache,
            generation_config=configs[0],
            max_batch=max_batch,
            max_prefill_tokens=max_prefill_tokens,
            graphs=graphs,
            compile=compile,
            fuse_projections=fuse_projections,
            prefix_reuse=prefix_reuse,
            kv_scales=kv_scales,
            preemption=preemption,
            swap_memory=swap_memory,
        ) as engine:
            submitted = zip(prompts, limits, configs, strict=True)
            requests = [
                engine.submit(prompt, limit, None if config is configs[0] else config, salt=salt)
                for prompt, limit, config in submitted
            ]
            engine.run()
            return requests
    finally:
        if owned is not None:
            owned.close()


def _prompts(given: Sequence[Sequence[int]]) -> list[list[int]]:
    try:
        return [list(prompt) for prompt in given]
    except TypeError:
        raise SpecError(f"prompts {shown(given)}: give a list of lists of token ids") from None


def _configs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    given: GenerationConfig | Sequence[GenerationConfig] | None,
) -> list[GenerationConfig]:
    """Return the config of each prompt."""
    config = model.generation_config if given is None else given
    if config is None:
        raise ConfigError("the model has no generation config: pass generation_config")
    configs = list(config) if isinstance(config, Sequence) else [config] * len(prompts)
    if others := [one for one in configs if not isinstance(one, GenerationConfig)]:
        raise ArgumentError(f"generation_config={shown(others[0])}: pass a GenerationConfig")
    if len(configs) != len(prompts):
        raise SpecError(
            f"there are {len(configs)} generation configs for {len(prompts)} prompts: give one for "
            "each, or one for all"
        )
    return configs


def _limits(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] | None,
    configs: Sequence[GenerationConfig],
) -> list[int]:
    if max_new_tokens is None:
        limits = [config.max_new_tokens for config in configs]
    elif isinstance(max_new_tokens, Iterable):
        limits = list(max_new_tokens)
    else:
        limits = [max_new_tokens] * len(prompts)
    if any(limit is None for limit in limits):
        raise SpecError(
            "nothing says how many tokens to generate: pass max_new_tokens, or a generation_config "
            "that has it"
        )
    if len(limits) != len(prompts):
        raise SpecError(
            f"max_new_tokens has {len(limits)} numbers for {len(prompts)} prompts: give one for "
            "each, or one for all"
        )
    return [check_count("max_new_tokens", limit) for limit in limits]


def _open(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    memory: int | str | None,
    max_batch: int,
    kv_dtype: str | None,
    options: dict[str, Any],
) -> KVCache:
    """Open a cache for these prompts: a slot for each, and one to fill up batches.

    Where layers keep states, two more for each, for those that later prompts go on from.
    """
    if memory is None:
        raise ConfigError(
            "there is no cache and no memory for one: pass cache, or memory such as '20GiB'"
        )
    longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    check_loaded(model)
    slots = max(1, min(max_batch, len(prompts))) + 1
    spec = spec_for(model, max_slots=slots, max_tokens=max(longest, 1), dtype=kv_dtype)
    if spec.states:
        spec = replace(spec, max_slots=3 * slots)
    return KVCache(spec, device=str(model.device), memory=memory, **options)
