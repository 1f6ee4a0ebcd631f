"""Many prompts through one cache in one call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pyvattn.cache import KVCache
from pyvattn.errors import ConfigError, SpecError
from pyvattn.integrations.transformers.engine import Engine
from pyvattn.integrations.transformers.request import Request
from pyvattn.integrations.transformers.sampling import choose_by
from pyvattn.integrations.transformers.spec import spec_for

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int] | None = None,
    generation_config: GenerationConfig | None = None,
    cache: KVCache | None = None,
    memory: int | str | None = None,
    max_batch: int = 64,
    max_prefill_tokens: int = 8192,
    graphs: bool | None = None,
    **cache_options: Any,
) -> list[Request]:
    """Generate from lists of token ids by continuous batching, as the library's method does.

    Returns a request for each prompt, in their order; ``request.output`` are its new tokens,
    with the end-of-sequence token where the model said it.

    ``max_new_tokens`` is one number or one for each prompt; by default that of
    ``generation_config``, which is the model's own by default. The config also says which
    tokens end a request (``eos_token_id``) and how tokens are chosen: greedily, or sampled
    with ``temperature``, ``top_k``, ``top_p`` and ``min_p``.

    The tokens lie in ``cache``, which stays open, or in one that is opened for the call with
    ``memory`` bytes (or text such as ``"20GiB"``) of physical memory at most; ``cache_options``
    (``driver``, ``page_size``, ``layout``) are those of :class:`pyvattn.KVCache`.
    ``max_batch``, ``max_prefill_tokens`` and ``graphs`` are those of :class:`Engine`, which
    is what to use for requests that come one by one.

    The model attends through pyvattn afterwards as well: with any other cache that is the
    library's ``"sdpa"``.

    Raises :class:`~pyvattn.errors.SpecError`, :class:`~pyvattn.errors.LengthError`,
    :class:`~pyvattn.errors.ConfigError` or :class:`~pyvattn.errors.UnsupportedError` before
    anything runs, and :class:`~pyvattn.errors.OutOfMemory` where a request does not fit alone.
    """
    config = generation_config or model.generation_config
    if config is None:
        raise ConfigError("the model has no generation config: pass generation_config")
    limits = _limits(prompts, max_new_tokens, config)
    choose = choose_by(config)
    if not prompts:
        return []
    owned = None
    if cache is None:
        cache = owned = _open(model, prompts, limits, memory, max_batch, cache_options)
    elif memory is not None or cache_options:
        given = ", ".join((["memory"] if memory is not None else []) + sorted(cache_options))
        raise ConfigError(f"cache is given, so {given} can change nothing: leave out one of them")
    try:
        with Engine(
            model,
            cache,
            _stop_tokens(config),
            choose=choose,
            max_batch=max_batch,
            max_prefill_tokens=max_prefill_tokens,
            graphs=graphs,
        ) as engine:
            requests = [engine.submit(*each) for each in zip(prompts, limits, strict=True)]
            engine.run()
            return requests
    finally:
        if owned is not None:
            owned.close()


def _limits(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] | None,
    config: GenerationConfig,
) -> list[int]:
    limit = config.max_new_tokens if max_new_tokens is None else max_new_tokens
    if limit is None:
        raise SpecError(
            "nothing says how many tokens to generate: pass max_new_tokens, or a generation_config "
            "that has it"
        )
    if isinstance(limit, int):
        return [limit] * len(prompts)
    if len(limit) != len(prompts):
        raise SpecError(
            f"max_new_tokens has {len(limit)} numbers for {len(prompts)} prompts: give one for "
            "each, or one for all"
        )
    return list(limit)


def _open(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    memory: int | str | None,
    max_batch: int,
    options: dict[str, Any],
) -> KVCache:
    """Open a cache for these prompts: a slot for each, one to fill up batches, and no more."""
    if memory is None:
        raise ConfigError(
            "there is no cache and no memory for one: pass cache, or memory such as '20GiB'"
        )
    longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    slots = max(1, min(max_batch, len(prompts))) + 1
    spec = spec_for(model, max_slots=slots, max_tokens=max(longest, 1))
    return KVCache(spec, device=str(model.device), memory=memory, **options)


def _stop_tokens(config: GenerationConfig) -> Collection[int]:
    ends = config.eos_token_id
    if ends is None:
        return ()
    return (ends,) if isinstance(ends, int) else tuple(ends)
