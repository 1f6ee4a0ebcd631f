# SPDX-License-Identifier: Apache-2.0
"""The prompts of an engine's step: which of their tokens run together, and where they pause."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pyvattn.integrations.transformers.parts import Chunk, upload

if TYPE_CHECKING:
    from pyvattn.cache import Slot
    from pyvattn.integrations.transformers.admission import Admission
    from pyvattn.integrations.transformers.decode import DeviceBatch
    from pyvattn.integrations.transformers.rates import FastestRate
    from pyvattn.integrations.transformers.readback import Readback
    from pyvattn.integrations.transformers.request import Request


class Prefill:
    """Runs prompts, no more than ``most`` tokens of them in a step.

    Those of a step are one packed batch. Where layers keep states, ``alone``, each chunk is a batch
    of its own, as the library's code for these takes a packed batch for one sequence; and a chunk
    ends where the states are to be kept for later prompts. With windows in rings no chunk has more
    than ``most_of_row`` tokens, and a step runs one batch after the other.

    What is copied for those who share it, states and rings, is there once it was computed. Else
    tokens are shared already by those who run in the same batch.
    """

    def __init__(
        self,
        batch: DeviceBatch,
        admission: Admission,
        rate: FastestRate,
        most: int,
        *,
        alone: bool,
        most_of_row: int | None,
    ) -> None:
        self._batch, self._admission, self._rate = batch, admission, rate
        self._most, self._alone = most, alone
        self._most_of_row = most if most_of_row is None else most_of_row
        self._one_pass = not alone and most_of_row is None

    def run(
        self,
        unfilled: Callable[[], Iterator[Request]],
        withdraw: Callable[[Sequence[Request]], None],
        launched: Readback,
    ) -> None:
        """Launch what a step may run of the prompts that ``unfilled`` yields when asked for them.

        The requests of a pass that fails go to ``withdraw``.
        """
        room = self._most
        while room and (taken := self._taken(unfilled(), room)):
            requests, chunks = zip(*taken, strict=True)
            try:
                self._launch(requests, chunks, launched)
            except BaseException:
                withdraw(requests)
                raise
            room -= sum(chunk.count for chunk in chunks)
            if self._one_pass:
                break
            for request, chunk in taken:
                # States and rings are what they are until the next pass.
                self._admission.publish(request, _slot(request), chunk.end)

    def comes_after(self, request: Request, others: Sequence[Request]) -> bool:
        """Whether a request waits until one of ``others`` has computed what both begin with."""
        if self._one_pass or self._alone:
            return False
        begun = [each for each in others if not each.ready]
        return self._admission.any_begins_like(request, begun)

    def _taken(self, unfilled: Iterator[Request], room: int) -> list[tuple[Request, Chunk]]:
        """Return requests and the chunks of their prompts that run in one pass."""
        taken: list[tuple[Request, Chunk]] = []
        for request in unfilled:
            end = min(request.length, request.cached + min(room, self._most_of_row))
            if self._alone:
                end = self._admission.pause(request, _slot(request), end)
            chunk = Chunk(int(_slot(request)), request.cached, end)
            taken.append((request, chunk))
            if self._alone:
                break
            if self._one_pass:
                # Those that follow in this very batch may share it: every layer stores what is new
                # before it attends.
                self._admission.publish(request, _slot(request), end)
            room -= chunk.count
            if not room:
                break
        return taken

    def _launch(
        self, requests: Sequence[Request], chunks: Sequence[Chunk], launched: Readback
    ) -> None:
        pairs = list(zip(requests, chunks, strict=True))
        tokens = [token for each, chunk in pairs for token in each.tokens[chunk.first : chunk.end]]
        samplers = [each.sampler if chunk.end == each.length else None for each, chunk in pairs]
        with self._rate.timing(len(tokens)):
            new = self._batch.prefill(chunks, tokens, samplers)
        for request, chunk in pairs:
            request.cached = chunk.end
        places = [i for i, each in enumerate(requests) if each.cached == each.length]
        filled = [requests[i] for i in places]
        for request in filled:
            request.ready = True
            request.started += 1
        if filled:
            first = places[-1] < len(places)
            chosen = new[: len(places)] if first else new[upload(places, new.device)]
            launched.add(filled, chosen)


def _slot(request: Request) -> Slot:
    assert request.slot is not None
    return request.slot
