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
    if the model said it. ``slot`` is the request's row while it runs.
    """

    prompt: list[int]
    max_new_tokens: int
    output: list[int] = field(default_factory=list)
    slot: Slot | None = None
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
    def cached(self) -> int:
        """The tokens whose K and V are in the slot: all but the newest, once there is output."""
        return self.length - 1 if self.output and self.slot is not None else 0
