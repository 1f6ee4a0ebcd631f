# SPDX-License-Identifier: Apache-2.0
"""How the next token is chosen from logits: by the library's own logits processors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process

from pyvattn.errors import SpecError
from pyvattn.integrations.transformers.parts import upload
from pyvattn.integrations.transformers.settings import refuse_unknown
from pyvattn.text import printable
from pyvattn.whole_numbers import whole_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Processors that look at the logits of a row and at nothing else, and read no value on the
# host: they take all rows at once, in a captured step too. The others get a row and its tokens.
_OF_LOGITS_ALONE = (
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.SuppressTokensLogitsProcessor,
)


class Sampler:
    """Chooses tokens from logits alone, of any number of rows at once.

    Sampling draws from torch's generator of the device, so ``torch.manual_seed`` makes it
    repeatable.
    """

    reads_tokens = False

    def __init__(self, processors: LogitsProcessorList, draws: bool) -> None:
        self._processors: Any = processors
        self._draws = draws

    def start(self, tokens: Sequence[int]) -> None:
        """Begin, or begin again, where the request has ``tokens``."""

    def choose(self, logits: Tensor, count: int) -> Tensor:
        """Return ``[rows]`` tokens for ``[rows, vocabulary]`` logits; reads nothing on the host.

        ``count`` is the number of tokens so far, where there is one row only.
        """
        # The processors read no token ids; their type wants a tensor.
        return self._choose(logits, torch.empty(0, dtype=torch.long, device="cpu"))

    def _choose(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if not self._processors and not self._draws:
            return logits.argmax(dim=-1)
        scores: Tensor = self._processors(tokens, logits.to(torch.float32, copy=True))
        if not self._draws:
            return scores.argmax(dim=-1)
        weights = scores.softmax(dim=-1)
        # Dividing by exponential noise is what multinomial() does, but for its checks, which wait.
        return (weights / torch.empty_like(weights).exponential_()).argmax(dim=-1)


class HistorySampler(Sampler):
    """Chooses the tokens of one request, from logits and from its tokens so far."""

    reads_tokens = True

    def __init__(
        self, processors: LogitsProcessorList, draws: bool, most: int, device: torch.device
    ) -> None:
        super().__init__(processors, draws)
        self._tokens = torch.zeros(1, most, dtype=torch.long, device=device)

    def start(self, tokens: Sequence[int]) -> None:
        """Take the tokens that the request begins with."""
        self._tokens[0, : len(tokens)] = upload(tokens, self._tokens.device)

    def choose(self, logits: Tensor, count: int) -> Tensor:
        """Choose a token, and add it to those that are known."""
        new = self._choose(logits, self._tokens[:, :count])
        # Read one step late, a request may run past its last token, which is dropped.
        self._tokens[0, count : count + 1] = new
        return new


def choose_by(
    samplers: Sequence[Sampler | None], logits: Tensor, counts: Sequence[int], new: Tensor
) -> None:
    """Write to ``new`` the tokens of the rows that have a sampler.

    ``logits`` are ``[rows, vocabulary]``, ``counts`` the tokens of each row so far.
    """
    rows: dict[Sampler, list[int]] = {}
    for row, sampler in enumerate(samplers):
        if sampler is not None:
            rows.setdefault(sampler, []).append(row)
    for sampler, of_it in rows.items():
        at = upload(of_it, new.device)
        new[at] = sampler.choose(logits[at], counts[of_it[0]])


class Samplers:
    """Makes the samplers of an engine's requests; those that ask for the same share one.

    ``config`` is that of requests which bring none. Raises
    :class:`~pyvattn.errors.UnsupportedError` for settings that continuous batching does not
    know, and :class:`~pyvattn.errors.SpecError` for values that the library refuses.
    """

    def __init__(self, model: PreTrainedModel, config: GenerationConfig) -> None:
        self._model = model
        self._config = config
        self._shared: WeakValueDictionary[str, Sampler] = WeakValueDictionary()
        _json_of(config)
        refuse_unknown(config)
        made = self._make(config, 1, 1)
        self._has_common = not made.reads_tokens
        # Chooses for every row of a step; requests with samplers of their own do so afterwards.
        self.common = made if self._has_common else Sampler(LogitsProcessorList(), draws=False)

    def config_for(
        self, config: GenerationConfig | None, options: dict[str, Any]
    ) -> GenerationConfig:
        """Return ``config``, or the engine's where there is none, with ``options`` laid over it."""
        if not options:
            return config or self._config
        config = copy.deepcopy(config or self._config)
        try:
            unknown = config.update(**{name: _plain(value) for name, value in options.items()})
        except Exception as error:  # whatever its checks of a value of another type run into
            raise _bad_setting(error) from error
        if unknown:
            raise SpecError(
                f"no generation option is called {', '.join(sorted(unknown))}: the names are those "
                "of transformers.GenerationConfig"
            )
        return config

    def of(self, config: GenerationConfig, prompt_tokens: int, new_tokens: int) -> Sampler | None:
        """Return the sampler of one request; ``None`` where the common one does."""
        if config is self._config and self._has_common:
            return None
        settings = _json_of(config)
        refuse_unknown(config)
        made = self._make(config, prompt_tokens, new_tokens)
        return made if made.reads_tokens else self._shared.setdefault(settings, made)

    def _make(self, config: GenerationConfig, prompt_tokens: int, new_tokens: int) -> Sampler:
        processors = self._processors(config, prompt_tokens, new_tokens)
        draws = bool(config.do_sample)
        if all(isinstance(each, _OF_LOGITS_ALONE) for each in processors):
            return Sampler(processors, draws)
        most = prompt_tokens + new_tokens
        return HistorySampler(processors, draws, most, self._model.device)

    def _processors(
        self, config: GenerationConfig, prompt_tokens: int, new_tokens: int
    ) -> LogitsProcessorList:
        """Return the processors that ``model.generate`` would take for such a prompt."""
        config = copy.deepcopy(config)
        config.max_new_tokens, config.max_length = new_tokens, prompt_tokens + new_tokens
        model: Any = self._model
        try:
            model._prepare_special_tokens(config, True, device=model.device)
            processors: LogitsProcessorList = model._get_logits_processor(
                config, prompt_tokens, device=model.device
            )
            # Some look at their settings only when they are called.
            tokens = torch.zeros(1, prompt_tokens, dtype=torch.long, device=model.device)
            vocabulary = model.config.get_text_config(decoder=True).vocab_size
            scores = torch.zeros(1, vocabulary, dtype=torch.float32, device=model.device)
            call: Any = processors
            call(tokens, scores)
        except Exception as error:  # whatever settings of another type make them run into
            raise _bad_setting(error) from error
        return processors


def _plain(value: Any) -> Any:
    """Return the integers of numpy and torch as ints; the library's checks know no others."""
    number = whole_number(value)
    return value if number is None else number


def _json_of(config: GenerationConfig) -> str:
    """Return ``config`` as text; settings that have none, such as arrays, are refused."""
    try:
        text: str = config.to_json_string()
    except Exception as error:  # whatever it runs into
        raise _bad_setting(error) from error
    return text


def _bad_setting(error: Exception) -> SpecError:
    reason = " ".join(printable(str(error) or type(error).__name__).split())
    return SpecError(f"transformers rejects the generation options: {reason[:200]}")
