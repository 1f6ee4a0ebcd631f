"""Continuous batching over the slots of a cache, small enough to read.

Requests join as soon as a slot and its pages are there, and leave as soon as
they are done, while the others run on. Nothing is moved or gathered: every
request's K and V stay in its slot, and each step only says how long the slots
are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyvattn.errors import LengthError, OutOfMemory, SpecError
from pyvattn.integrations.transformers.base import ContiguousCache
from pyvattn.integrations.transformers.forward import ForwardPass
from pyvattn.integrations.transformers.interface import ATTENTION
from pyvattn.integrations.transformers.request import Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pyvattn.cache import KVCache, Slot


class Engine:
    """Greedy decoding of many requests with one model and one cache.

    The model is switched to the attention implementation ``"pyvattn"``; the
    cache stays the caller's, who closes it after :meth:`close`. One thread.

    A request ends with any of ``stop_tokens`` or its own limit. ``on_step`` is
    called in every step once the new tokens are known and before finished
    requests leave: to stream them, or to watch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KVCache,
        stop_tokens: Collection[int] = (),
        on_step: Callable[[Engine], None] | None = None,
    ) -> None:
        model.set_attn_implementation(ATTENTION)
        self.model = model
        self.cache = cache
        self.stop_tokens = frozenset(stop_tokens)
        self.on_step = on_step
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._batch = _Batch(cache)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    def submit(self, prompt: Sequence[int], max_new_tokens: int) -> Request:
        """Queue a prompt of token ids; it runs from one of the next steps on.

        Raises :class:`~pyvattn.errors.LengthError` if it cannot fit in a slot.
        """
        if not prompt or max_new_tokens < 1:
            raise SpecError(
                f"a prompt of {len(prompt)} tokens with max_new_tokens={max_new_tokens}: "
                "give at least one of each"
            )
        # The last new token is never read again, so it needs no room.
        needed, room = len(prompt) + max_new_tokens - 1, self.cache.spec.max_tokens
        if needed > room:
            raise LengthError(
                f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones need {needed} "
                f"tokens, a slot holds max_tokens={room}: shorten one of them"
            )
        request = Request(list(prompt), max_new_tokens)
        self.waiting.append(request)
        return request

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Run one iteration: admit, back, compute, retire. Returns the requests that finished.

        Raises :class:`~pyvattn.errors.OutOfMemory` only where a request does
        not fit even alone; that request is dropped, the others go on with the
        next call. Raises :class:`~pyvattn.errors.OutOfSlots` where others hold
        every slot of the cache.
        """
        joined = self._admit()
        self._back()
        going = [request for request in self.running if request not in joined]
        for request in joined:
            if request in self.running:
                self._compute([request], request.tokens)
        if going:
            self._compute(going, [request.tokens[-1] for request in going])
        if self.on_step is not None:
            self.on_step(self)
        return self._retire()

    def run(self) -> list[Request]:
        """Step until every request is done; returns them in the order they finished."""
        finished = []
        while self.busy:
            finished += self.step()
        return finished

    def cancel(self, request: Request) -> None:
        """Take a request out wherever it is; what it generated stays with it."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.running:
            self._leave(request)

    def close(self) -> None:
        """Drop every request and release their slots."""
        self.waiting.clear()
        while self.running:
            self._leave(self.running[-1])

    def _admit(self) -> list[Request]:
        """Give waiting requests a slot while slots and pages last, first come first served."""
        joined: list[Request] = []
        while self.waiting and self._has_room(self.waiting[0]):
            request = self.waiting[0]
            request.slot = self.cache.acquire(tokens=request.length)
            self.running.append(self.waiting.popleft())
            joined.append(request)
        return joined

    def _has_room(self, request: Request) -> bool:
        """Whether ``request`` may join. The only one is always tried: it can wait for nobody."""
        return not self.running or self.cache.can_admit(request.length)

    def _back(self) -> None:
        """Back this step's tokens, and let the next step's be mapped while the model computes."""
        while self.running:
            try:
                self.cache.step(self._lengths(ahead=0))
            except OutOfMemory:
                self._preempt()
            else:
                self.cache.prefetch(self._lengths(ahead=1))
                return

    def _lengths(self, ahead: int) -> dict[Slot, int]:
        room = self.cache.spec.max_tokens
        return {_slot(each): min(each.length + ahead, room) for each in self.running}

    def _preempt(self) -> None:
        """Send the youngest request back to wait; its tokens are computed anew when it returns."""
        youngest = self.running[-1]
        alone = len(self.running) == 1
        self._leave(youngest)
        if alone:
            raise OutOfMemory(
                f"a request of {youngest.length} tokens does not fit in the cache even alone and "
                "was dropped: raise the cache's memory limit"
            )
        self.waiting.appendleft(youngest)

    def _compute(self, requests: list[Request], tokens: list[int]) -> None:
        """Run the model on ``tokens``, equally many for each request; each gains one token."""
        inputs = torch.tensor(tokens, device=self.model.device).view(len(requests), -1)
        slots = [_slot(request) for request in requests]
        lengths = [request.length for request in requests]
        logits = self._batch.forward(self.model, slots, lengths, inputs)
        for request, token in zip(requests, logits.argmax(dim=-1).tolist(), strict=True):
            request.output.append(token)

    def _retire(self) -> list[Request]:
        """Release the slots of requests that are done."""
        done = [request for request in self.running if self._is_done(request)]
        for request in done:
            request.done = True
            self._leave(request)
        return done

    def _is_done(self, request: Request) -> bool:
        full = len(request.output) >= request.max_new_tokens
        return full or request.output[-1] in self.stop_tokens

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        slot, request.slot = _slot(request), None
        self.cache.release(slot)


class _Batch(ContiguousCache):
    """The library's view of whichever requests a forward pass is for."""

    def forward(
        self, model: PreTrainedModel, slots: list[Slot], lengths: list[int], inputs: Tensor
    ) -> Tensor:
        """Run ``[batch, tokens]`` of the newest tokens; returns logits ``[batch, vocabulary]``.

        ``lengths`` count these tokens, which the cache has backed already.
        """
        queries = inputs.shape[1]
        self._pass = ForwardPass(
            self.kv,
            slots=tuple(int(slot) for slot in slots),
            lengths=tuple(lengths),
            counts=(queries,) * len(slots),
            queries=queries,
            device=inputs.device,
        )
        last = torch.tensor(lengths, device=inputs.device)[:, None]
        positions = last + torch.arange(-queries, 0, device=inputs.device)
        outputs = model(
            input_ids=inputs,
            position_ids=positions,
            past_key_values=self,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def begin(
        self, batch_size: int, queries: int, padding_mask: Tensor | None, device: torch.device
    ) -> ForwardPass:
        """Return the pass that :meth:`forward` prepared."""
        assert self._pass is not None
        return self._pass

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens of the longest row; positions are given, so only masks ask."""
        return 0 if self._pass is None else max(self._pass.lengths) - self._pass.queries


def _slot(request: Request) -> Slot:
    assert request.slot is not None
    return request.slot
