# SPDX-License-Identifier: Apache-2.0
"""Which settings of a generation config continuous batching follows."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from transformers import GenerationConfig

from pyvattn.arguments import check_type, check_whole
from pyvattn.errors import SpecError, UnsupportedError
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

# How tokens are chosen: the library makes logits processors of these.
_CHOICE = {
    "do_sample",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "remove_invalid_values",
    "renormalize_logits",
}
# How generate() keeps tokens and runs the model, which is the engine's affair, and ids.
_OTHERWISE_DONE = {
    "max_new_tokens",
    "max_length",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "prefill_chunk_size",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "return_dict_in_generate",
    "transformers_version",
}
# Settings that are off at 1; the others are off at None, False or 0.
_OFF_AT_ONE = {
    "num_beams",
    "num_return_sequences",
    "encoder_repetition_penalty",
    "length_penalty",
    "guidance_scale",
}


def refuse_unknown(config: GenerationConfig) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` where ``config`` asks for anything else.

    It would change what comes out, so it is not passed over.
    """
    changed: dict[str, Any] = config.to_diff_dict()
    unknown = {
        name: value
        for name, value in changed.items()
        if name not in _CHOICE | _OTHERWISE_DONE
        and not name.startswith("_")
        and value not in (None, False, 0)
        and not (name in _OFF_AT_ONE and value == 1)
    }
    if unknown:
        listed = ", ".join(f"{name}={value!r}" for name, value in sorted(unknown.items()))
        raise UnsupportedError(
            f"continuous batching does not know {listed} of the generation config: leave it out, "
            "or use model.generate with a VAttentionCache"
        )


def config_of(
    config: GenerationConfig | None, stop_tokens: Collection[int] | None
) -> GenerationConfig:
    """Return ``config``, or greedy decoding, with ``stop_tokens`` where they are given."""
    check_type("generation_config", config, GenerationConfig, type(None))
    config = GenerationConfig() if config is None else copy.deepcopy(config)
    if stop_tokens is not None:
        check_type("stop_tokens", stop_tokens, Collection)
        ends = [check_whole("stop_tokens", token) for token in stop_tokens]
        config.eos_token_id = sorted(ends) or None
    return config


def stop_tokens_of(config: GenerationConfig) -> frozenset[int]:
    """Return the tokens that end a request; raises :class:`~pyvattn.errors.SpecError`."""
    ends: Any = config.eos_token_id
    if ends is None:
        return frozenset()
    tokens = list(ends) if isinstance(ends, (list, tuple, set, frozenset)) else [ends]
    numbers = [whole_number(token) for token in tokens]
    if None in numbers:
        raise SpecError(f"eos_token_id={shown(ends)}: use a token id, or a list of them")
    return frozenset(number for number in numbers if number is not None)
