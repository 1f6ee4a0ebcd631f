"""One request of the continuous-batching engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvattn.cache import Slot


@dataclass(eq=False)
class Request:
    """A prompt on its way through the engine, and what came of it.

    ``output`` grows by one token a step and ends with the end-of-sequence token
    if the model said it. ``slot`` is the request's row while it runs, and
    ``cached`` are the tokens whose K and V are there, or will be once the device
    has done what it was given. ``ready`` says that nothing but the newest token is
    missing there, and ``started`` counts the output tokens that the device was asked
    for: those of ``output``, and one more where it is not read yet.
    """

    prompt: list[int]
    max_new_tokens: int
    output: list[int] = field(default_factory=list)
    slot: Slot | None = None
    cached: int = 0
    ready: bool = False
    started: int = 0
    done: bool = False

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
