# SPDX-License-Identifier: Apache-2.0
"""One request of the continuous-batching engine."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyvattn.errors import LengthError, SpecError
from pyvattn.integrations.transformers.spec import positions_of
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pyvattn.cache import Slot
    from pyvattn.integrations.transformers.sampling import Sampler
    from pyvattn.swap import Offloaded


@dataclass(eq=False)
class Request:
    """A prompt on its way through the engine, and what came of it.

    ``output`` grows by one token a step and ends with the end-of-sequence token
    if the model said it, one of ``stop_tokens``. ``sampler`` chooses the tokens; where it is
    ``None``, that of the engine does. ``slot`` is the request's row while it runs, and
    ``cached`` are the tokens whose K and V are there, or will be once the device
    has done what it was given. ``ready`` says that nothing but the newest token is
    missing there, and ``started`` counts the output tokens that the device was asked
    for: those of ``output``, and one more where it is not read yet. ``reused`` are the tokens
    whose K and V other requests had; it shares with those of its ``salt`` if ``reuse``.
    ``swapped`` is what it had when it had to leave, in host memory, where it waits with that.
    """

    prompt: list[int]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    sampler: Sampler | None = None
    output: list[int] = field(default_factory=list)
    slot: Slot | None = None
    cached: int = 0
    ready: bool = False
    started: int = 0
    done: bool = False
    reuse: bool = True
    salt: bytes | str = b""
    reused: int = 0
    swapped: Offloaded | None = None

    @property
    def tokens(self) -> list[int]:
        """Prompt and output so far."""
        return self.prompt + self.output

    @property
    def length(self) -> int:
        """The number of tokens so far."""
        return len(self.prompt) + len(self.output)

    @property
    def decoding(self) -> bool:
        """Whether the next step adds a token to the slot."""
        return self.ready and self.started < self.max_new_tokens

    @property
    def complete(self) -> bool:
        """Whether the output is all that was asked for, or ends with a stop token."""
        full = len(self.output) >= self.max_new_tokens
        return full or (bool(self.output) and self.output[-1] in self.stop_tokens)


def check_count(name: str, given: object) -> int:
    """Return ``given`` as an int from 1, or raise :class:`~pyvattn.errors.SpecError`."""
    count = whole_number(given)
    if count is None or count < 1:
        raise SpecError(f"{name}={shown(given)}: use a whole number from 1")
    return count


def prompt_for(model: PreTrainedModel, prompt: Sequence[int], new: int, most: int) -> list[int]:
    """Return ``prompt`` as a list, where it and ``new`` tokens fit ``model`` and ``most`` tokens.

    Raises :class:`~pyvattn.errors.SpecError` for what is no prompt of the model, and
    :class:`~pyvattn.errors.LengthError` for one that is too long.
    """
    tokens = _tokens_of(model, prompt)
    new = check_count("max_new_tokens", new)
    if not tokens:
        raise SpecError("a prompt of 0 tokens: give at least one")
    # The last new token is never read again, so it needs no room.
    needed = len(tokens) + new - 1
    for room, whose in (
        (most, "a slot holds max_tokens="),
        (positions_of(model), "the model knows "),
    ):
        if room is not None and needed > room:
            raise LengthError(
                f"a prompt of {len(tokens)} tokens and {shown(new)} new ones need {shown(needed)} "
                f"tokens, {whose}{room}: shorten one of them"
            )
    return tokens


def _tokens_of(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    """Return the token ids as ints. An id that the model has not would be a device fault."""
    try:
        tokens = [operator.index(token) for token in prompt]
    except TypeError:
        raise SpecError("a prompt is a sequence of token ids: tokenize text first") from None
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.weight.shape[0]
    for token in tokens:
        if not 0 <= token < known:
            raise SpecError(
                f"token {shown(token)} is outside the vocabulary of {known}: the prompt was made "
                "by another model's tokenizer"
            )
    return tokens
