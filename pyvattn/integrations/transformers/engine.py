# SPDX-License-Identifier: Apache-2.0
"""Continuous batching over the slots of a cache.

Requests join as soon as a slot and its pages are there, and leave as soon as they are
done, while the others run on. Nothing is moved or gathered: every request's K and V
stay in its slot, and each step only says how long the slots are. Which token comes
next is decided on the device; the host reads the tokens of a step once, and on CUDA
only after the next step was launched, so the device never waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from pyvattn.arguments import check_callable, check_flag, check_type
from pyvattn.cache import KVCache
from pyvattn.errors import OutOfMemory, SpecError, UnsupportedError
from pyvattn.integrations.transformers.admission import Admission
from pyvattn.integrations.transformers.ahead import RowsAhead, first_prompts
from pyvattn.integrations.transformers.decode import DeviceBatch
from pyvattn.integrations.transformers.float8 import GivenScales, give_scales
from pyvattn.integrations.transformers.graphs import on_device, scratch_slot, wants_graphs
from pyvattn.integrations.transformers.neighbours import Neighbours
from pyvattn.integrations.transformers.preemption import HostSwap, Preemptions
from pyvattn.integrations.transformers.prefill import Prefill
from pyvattn.integrations.transformers.ranks import Ranks
from pyvattn.integrations.transformers.readback import Readback
from pyvattn.integrations.transformers.request import Request, check_count, prompt_for
from pyvattn.integrations.transformers.sampling import Samplers
from pyvattn.integrations.transformers.settings import config_of, stop_tokens_of
from pyvattn.integrations.transformers.spec import check_fit, check_model, check_positions
from pyvattn.integrations.transformers.switch import attend_through
from pyvattn.logs import logger_of
from pyvattn.nvtx import ranged
from pyvattn.prefix import PrefixIndex
from pyvattn.text import shown

if TYPE_CHECKING:
    from types import TracebackType

    from transformers import PreTrainedModel

    from pyvattn.cache import Slot

_log = logger_of(__name__)


class Engine:
    """Decoding of many requests with one model and one cache, step by step.

    The model has the attention implementation ``"pyvattn"`` until :meth:`close`, then what it
    had before; the cache stays the caller's, who closes it after that. One thread.

    A request ends with any of ``stop_tokens`` or its own limit. ``on_step`` is called in
    every step once new tokens are known and before finished requests leave: to stream
    them, or to watch. ``generation_config`` says how tokens are chosen where a request does
    not: by the library's logits processors, the likeliest or a draw. By default the likeliest
    of what the model says, without an end; its ``eos_token_id`` stands in for ``stop_tokens``.

    A step runs at most ``max_prefill_tokens`` tokens of prompts, longer ones in chunks,
    and one token of every request whose prompt is done. At most ``max_batch`` requests run
    at once; by default as many as the cache has slots.

    ``graphs=None`` captures the decode step as a CUDA graph for each batch size where the
    device, the attention kernel and the model's own code allow it, ``True`` insists and ``False``
    does without: :attr:`graphs` says what became of it. They take one slot of the cache.
    ``compile=True`` has torch.compile fuse what the decoder layers do beside matrix products and
    attention, in prompts and in decode steps; the first steps take as long as that takes.
    ``fuse_projections=True`` multiplies by the weights of Q, K and V at once, and of gate and up:
    it lays them one behind the other, for good, which takes no memory. With ``lookahead`` the
    tokens of a step are read after the next step was launched; a request that generates a stop
    token then runs one token further, which is dropped. It is on by default on CUDA.

    Prompts that begin alike share what they have in common, whole blocks of it, with requests
    that run or ran before: ``prefixes`` finds it (:class:`pyvattn.prefix.PrefixIndex`), and its
    ``stats()`` count it. It is ``None`` with ``prefix_reuse=False``. Where layers have windows or
    states (Mamba, linear attention), it keeps some of them in slots of their own: give the cache
    more slots than run at once.

    Where memory runs out, the youngest request leaves until there is room again. With
    ``preemption="swap"`` its K and V go to pinned host memory, ``swap_memory`` bytes (or text) of
    it at most, with ``"recompute"`` they are computed anew, and ``"auto"`` does whichever takes
    less time: bytes there and back by the copy rate, or its tokens by the rate of prompts, both as
    measured so far. Where the host has no memory left it is computed anew. :meth:`preemptions`
    counts.

    A cache in float8 is quantised with ``kv_scales``: a :class:`pyvattn.attention.KVScales`, or
    the file of one. By default the first prompts that run set them, layer by layer.

    A model that the library spread over several processes (``tp_plan="auto"``) has an engine and a
    cache in each, of its part of the heads: submit, cancel and step alike in all of them. Where one
    has no room all wait, and tokens are the first one's. A process that is gone is a
    :class:`~pyvattn.errors.RankError` for the others.

    Raises :class:`~pyvattn.errors.UnsupportedError` if ``graphs=True`` is not possible,
    :class:`~pyvattn.errors.SpecError` for numbers out of range and a cache that does not fit
    the model, and :class:`~pyvattn.errors.ArgumentError` or
    :class:`~pyvattn.errors.ConfigError` for arguments of other types.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KVCache,
        stop_tokens: Collection[int] | None = None,
        on_step: Callable[[Engine], None] | None = None,
        *,
        generation_config: GenerationConfig | None = None,
        max_batch: int | None = None,
        max_prefill_tokens: int = 8192,
        graphs: bool | None = None,
        compile: bool = False,
        fuse_projections: bool = False,
        lookahead: bool | None = None,
        prefix_reuse: bool = True,
        kv_scales: GivenScales = None,
        preemption: str = "auto",
        swap_memory: int | str = "8GiB",
    ) -> None:
        check_model(model)
        check_type("cache", cache, KVCache)
        check_callable("on_step", on_step)
        if max_batch is not None:
            max_batch = check_count("max_batch", max_batch)
        max_prefill_tokens = check_count("max_prefill_tokens", max_prefill_tokens)
        if lookahead is not None:
            check_flag("lookahead", lookahead)
        check_flag("prefix_reuse", prefix_reuse)
        check_flag("compile", compile)
        check_flag("fuse_projections", fuse_projections)
        check_fit(model, cache)
        check_positions(model)
        if compile and cache.spec.states:
            raise UnsupportedError(
                "compile=True: layers with states take them out of the cache while they run, which "
                "torch.compile does not follow: use compile=False"
            )
        self._ranks = Ranks(model)
        if compile or fuse_projections or cache.lease is not None:
            self._ranks.refuse_several()
        self._swap = HostSwap(cache, model.device, preemption, swap_memory, self._ranks)
        give_scales(cache, kv_scales)
        wanted = wants_graphs(model, cache, graphs)
        self._samplers = Samplers(model, config_of(generation_config, stop_tokens))
        self.model = model
        self.cache = cache
        self.on_step = on_step
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._max_batch = min(cache.spec.max_slots, max_batch or cache.spec.max_slots)
        self._max_prefill_tokens = max_prefill_tokens
        self._lookahead = model.device.type == "cuda" if lookahead is None else lookahead
        self._unread: deque[Readback] = deque()
        self._finished: list[Request] = []
        self._scratch = scratch_slot(cache) if wanted else None
        common, settings = self._samplers.common, (bool(graphs), compile, fuse_projections)
        self._batch = DeviceBatch(model, cache, common, self._scratch, *settings, self._ranks)
        self._release_model = attend_through(model, self)
        self.prefixes = PrefixIndex(cache) if prefix_reuse else None
        self._admission = Admission(cache, self.prefixes, self._ranks)
        self._prefill = Prefill(
            self._batch,
            self._admission,
            self._swap.prefill_rate,
            max_prefill_tokens,
            alone=bool(cache.spec.states),
            most_of_row=cache.chunk_tokens,
        )
        self._neighbours = Neighbours(cache, self.prefixes)
        self._ahead = RowsAhead(cache)

    @property
    def graphs(self) -> bool:
        """Whether decode steps are captured; code that cannot be shows when it is first run."""
        return self._batch.graphs

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    def submit(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        generation_config: GenerationConfig | None = None,
        *,
        reuse: bool = True,
        salt: bytes | str = b"",
        **options: Any,
    ) -> Request:
        """Queue a prompt of token ids; it runs from one of the next steps on.

        It shares its beginning with requests of the same ``salt``, or, with ``reuse=False``, with
        none. Give tenants, adapters and prompts whose K and V come from more than their tokens
        a salt of their own. ``request.reused`` says how many tokens were there already.

        ``generation_config`` takes the place of the engine's for this request, and ``options``
        are settings laid over it, such as ``temperature=0.7`` or ``repetition_penalty=1.1``.

        Raises :class:`~pyvattn.errors.LengthError` if it cannot fit in a slot or in the
        positions that the model has learned, :class:`~pyvattn.errors.SpecError` for an
        empty prompt, no token to generate, what is no token of the model or no setting, and
        :class:`~pyvattn.errors.UnsupportedError` for settings of another kind of generation.
        """
        max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        check_flag("reuse", reuse)
        check_type("salt", salt, bytes, str)
        check_type("generation_config", generation_config, GenerationConfig, type(None))
        tokens = prompt_for(self.model, prompt, max_new_tokens, self.cache.spec.max_tokens)
        config = self._samplers.config_for(generation_config, options)
        sampler = self._samplers.of(config, len(tokens), max_new_tokens)
        request = Request(tokens, max_new_tokens, stop_tokens_of(config), sampler)
        request.reuse, request.salt = reuse, salt
        self.waiting.append(request)
        return request

    def submit_samples(
        self, prompt: Sequence[int], max_new_tokens: int, n: int, **options: Any
    ) -> list[Request]:
        """Queue ``n`` requests with one prompt, whose whole blocks are held and computed once.

        ``options`` are those of :meth:`submit`; without ``do_sample=True`` all say the same.
        """
        count = check_count("n", n)
        if count > self.cache.spec.max_slots:
            raise SpecError(
                f"n={shown(count)}: the cache has {self.cache.spec.max_slots} slots, open one with "
                "more"
            )
        return [self.submit(prompt, max_new_tokens, **options) for _ in range(count)]

    @ranged("pyvattn.engine_step")
    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Run one iteration: back, compute, read, retire. Returns the requests that finished.

        Raises :class:`~pyvattn.errors.OutOfMemory` only where a request does not fit even
        alone; that request is dropped, the others go on with the next call. Raises
        :class:`~pyvattn.errors.OutOfSlots` where others hold every slot of the cache.

        Where processes share the memory, call it while idle too, some ten times a second: it
        gives neighbours what is kept for later. Where they leave no room for a single request it
        waits a moment for them.
        """
        with on_device(self.model.device), self._ranks.in_step():
            self._share()
            self._back()
            launched = self._launch()
            if self.running:
                prompts = first_prompts(self.waiting, self._max_prefill_tokens)
                self._ahead.want(prompts, self._admission.shares)
            self._read(keep=1 if self._lookahead and launched else 0)
            if self.waiting and not launched and not self.running:
                self._neighbours.wait_for(self.waiting[0].length)
        finished, self._finished = self._finished, []
        return finished

    def run(self) -> list[Request]:
        """Step until every request is done; returns them in the order they finished."""
        finished = []
        while self.busy:
            finished += self.step()
        return finished

    def cancel(self, request: Request) -> None:
        """Take a request out wherever it is; what it generated stays with it.

        Nothing happens where it is done already, or of another engine.
        """
        check_type("request", request, Request)
        if request in self.waiting:
            self.waiting.remove(request)
            self._swap.drop(request)
        elif request in self.running:
            self._leave(request)

    @torch.inference_mode()
    def capture(self, most: int) -> None:
        """Capture the decode step of batch sizes to ``most`` now, and more of them than otherwise.

        Without it powers of two are captured when they first occur. Does nothing without graphs.
        """
        most = check_count("most", most)
        if self.graphs:
            with on_device(self.model.device):
                self._batch.capture_to(most)

    def preemptions(self) -> Preemptions:
        """Count the requests that had to leave for want of memory, and what became of them."""
        return self._swap.stats()

    def close(self) -> None:
        """Drop every request, release their slots and let go of the model."""
        while self.waiting:
            self._swap.drop(self.waiting.pop())
        self._unread.clear()
        self._ahead.let_go()
        while self.running:
            self._leave(self.running[-1])
        if self._scratch is not None:
            scratch, self._scratch = self._scratch, None
            self.cache.release(scratch)
        if self.prefixes is not None:
            self.prefixes.close()
        self._neighbours.leave()
        self._release_model()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- memory ---

    def _share(self) -> None:
        """Give neighbours their part: of running requests only to one below its guarantee."""
        self._neighbours.settle(self._runnable())
        while self.running and self._neighbours.owed():
            self._make_room()
            self._neighbours.settle(self._runnable())

    def _runnable(self) -> Iterator[int]:
        """Yield the tokens of each that waits and would run if there were memory."""
        room = self._max_batch - len(self.running)
        return (request.length for request in islice(self.waiting, room))

    def _back(self) -> None:
        """Back the next token of every request that decodes, and have the one after it mapped."""
        while True:
            decoding = [request for request in self.running if request.decoding]
            try:
                self.cache.step({_slot(each): each.cached + 1 for each in decoding})
                fits = True
            except OutOfMemory:
                fits = False
            if self._ranks.all(fits):
                break
            self._make_room()
        most = self.cache.spec.max_tokens
        self.cache.prefetch({_slot(each): min(each.cached + 2, most) for each in decoding})

    def _make_room(self) -> None:
        """Send the youngest request back to wait, with its K and V in host memory or without."""
        if self._ranks.any(self._ahead.let_go()):
            return
        before = len(self.running)
        self._read(keep=0)
        if len(self.running) < before:
            return
        youngest = self.running[-1]
        if before == 1 and not self._neighbours.may_spare(youngest.length):
            self._leave(youngest)
            raise _too_large(youngest)
        _log.debug("no memory: a request of %d tokens waits again", youngest.length)
        self._leave(youngest, after=self._swap.out(youngest))
        self.waiting.appendleft(youngest)

    def _admit(self) -> Request | None:
        """Give the first that waits a slot with all its tokens backed, if there is memory.

        A request is always tried when no other runs: nothing would free memory for it.
        """
        if not self.waiting or len(self.running) >= self._max_batch:
            return None
        if self._prefill.comes_after(self.waiting[0], self.running):
            return None
        # It finds the pages that were mapped for it under what is free again.
        self._ahead.let_go()
        request = self.waiting[0]
        try:
            admitted = self._admission.slot_for(request, alone=not self.running)
        except OutOfMemory as error:
            if self.running or self._neighbours.may_spare(request.length):
                return None
            self._swap.drop(self.waiting.popleft())
            raise _too_large(request) from error
        if admitted is None:
            return None
        slot, hit = admitted
        request.cached = self._restored(request, slot, hit)
        self.waiting.popleft()
        request.slot = slot
        request.started = len(request.output)
        request.reused += hit
        if request.sampler is not None:
            request.sampler.start(request.tokens)
        self.running.append(request)
        return request

    def _restored(self, request: Request, slot: Slot, hit: int) -> int:
        """Copy what went to host memory to the request's new slot; returns what is there then."""
        try:
            return self._swap.back(request, slot, hit)
        except BaseException:
            self._admission.release(request, slot)
            raise

    def _leave(self, request: Request, after: object = None) -> None:
        """Release the slot. The device may still be at work on it: the cache waits for that."""
        self.running.remove(request)
        slot = _slot(request)
        self._admission.publish(request, slot, request.cached)
        request.slot, request.ready = None, False
        self._admission.release(request, slot, after)

    def _withdraw(self, requests: Sequence[Request]) -> None:
        """Send requests back to wait that a failed pass leaves without a use.

        Those whose tokens others may share, and were not computed, and those whose states may
        have seen some of them.
        """
        for request in reversed(requests):
            if self._admission.forget(request, _slot(request)) or self.cache.spec.states:
                request.cached = 0
                self._leave(request)
                self.waiting.appendleft(request)

    # --- computing ---

    def _launch(self) -> bool:
        """Give the device this step's work; returns whether there was any."""
        launched = Readback()
        try:
            self._decode(launched)
            self._prefill.run(self._unfilled, self._withdraw, launched)
        finally:
            if launched.requests:
                launched.begin()
                self._unread.append(launched)
        return bool(launched.requests)

    def _decode(self, launched: Readback) -> None:
        """Add a token to every request whose slot is filled."""
        decoding = [request for request in self.running if request.decoding]
        if not decoding:
            return
        slots = [int(_slot(request)) for request in decoding]
        lengths = [request.cached + 1 for request in decoding]
        try:
            tokens = self._batch.decode(slots, lengths, [request.sampler for request in decoding])
        except BaseException:
            if self.cache.spec.states:
                self._withdraw(decoding)
            raise
        for request in decoding:
            request.cached += 1
            request.started += 1
        launched.add(decoding, tokens)

    def _unfilled(self) -> Iterator[Request]:
        """Yield the requests whose prompts are to be run, then admit more as they are asked for."""
        yield from [request for request in self.running if not request.ready]
        while (request := self._admit()) is not None:
            yield request

    def _read(self, keep: int) -> None:
        """Read the tokens of all but the newest ``keep`` launches, and let go who is done."""
        while len(self._unread) > keep:
            for request, slot, token in self._unread.popleft().tokens():
                if request.slot is slot and not request.complete:
                    request.output.append(token)
        if self.on_step is not None:
            self.on_step(self)
        for request in [each for each in self.running if each.complete]:
            request.done = True
            self._leave(request)
            self._finished.append(request)


def _slot(request: Request) -> Slot:
    assert request.slot is not None
    return request.slot


def _too_large(request: Request) -> OutOfMemory:
    return OutOfMemory(
        f"a request of {request.length} tokens does not fit in the cache even alone and was "
        "dropped: raise the cache's memory limit"
    )
