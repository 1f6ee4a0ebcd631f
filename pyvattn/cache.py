# SPDX-License-Identifier: Apache-2.0
"""The KV cache: contiguous in virtual memory, paged in physical memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pyvattn import _native
from pyvattn._native import Slot
from pyvattn.arguments import check_flag, check_name, check_type, is_number
from pyvattn.at_exit import is_left_open
from pyvattn.budget import Budget, budget_of
from pyvattn.dropped import DroppedSlots, report
from pyvattn.errors import (
    ArgumentError,
    ConfigError,
    LengthError,
    LimitError,
    OutOfMemory,
    OutOfSlots,
)
from pyvattn.geometry import Geometry
from pyvattn.keepers import Keeper, Keepers
from pyvattn.layers import LayerTensors
from pyvattn.native_groups import native_groups
from pyvattn.nvtx import ranged, ranged_driver
from pyvattn.resolve import check_device, open_driver
from pyvattn.shared import SharedMemory
from pyvattn.slot_copies import CopiesSlots
from pyvattn.spec import CacheSpec
from pyvattn.state_rows import state_rows
from pyvattn.stats import Stats
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

__all__ = ["KVCache", "Slot", "Stats"]

_T = TypeVar("_T")


class KVCache(CopiesSlots):
    """One virtually contiguous tensor for each K and V, with memory only where tokens are.

    ``device`` is ``"cuda:0"`` … or ``"cpu"``; ``driver`` is ``"auto"`` or a
    driver by name; ``page_size`` is bytes, text such as ``"64K"``, or
    ``"auto"``; ``layout`` is ``"layer"``, ``"token"`` (all layers of a token
    side by side, or groups of ``layers_per_arena``) or ``"auto"``; ``memory``
    is the most physical memory that the cache takes, or a budget that it shares with others
    (:class:`pyvattn.MemoryLimit`). With ``peer_access`` the other
    GPUs of the process that can reach its memory may read and write it (:attr:`peers`), so
    that a tensor on one of them can be copied straight into the cache. Each map call then
    takes milliseconds, so it is off by default; see :meth:`layer` for copies without it.

    With ``background`` a mapper thread maps the next decode step's pages and cleans
    released slots while the caller computes. Where memory is free, a slot that
    grows gets pages for up to ``read_ahead`` more tokens than it needs, as far as
    requests tend to grow, in whole multiples of that; slots that need pages may take
    them back. ``"auto"`` is the least that hides mapping behind decode steps, by the
    planner's estimate. ``accounting`` runs the same allocator without memory behind
    it: nothing can be read or written. ``strict``, for finding bugs on the host: after
    every step all bytes that are mapped past a slot's length, the tail guard among them,
    are NaN, and so is what was never written.

    With ``memory="shared"`` the processes of this user share the device's memory: see
    :class:`pyvattn.SharedMemory`, which ``guarantee`` and ``weight`` are for.

    Any thread may call; if two call :meth:`step` at once, one gets a BusyError. Use it
    as a context manager, or call :meth:`close`.

    Raises :class:`~pyvattn.errors.ConfigError`,
    :class:`~pyvattn.errors.DriverUnavailable` or
    :class:`~pyvattn.errors.DriverError`.
    """

    _lease: SharedMemory | None = None
    _owns_lease = False

    def __init__(
        self,
        spec: CacheSpec,
        *,
        device: str = "cuda",
        driver: str = "auto",
        page_size: int | str = "auto",
        layout: str = "auto",
        memory: int | str | Budget,
        layers_per_arena: int | None = None,
        peer_access: bool = False,
        background: bool = True,
        read_ahead: int | str = "auto",
        accounting: bool = False,
        strict: bool = False,
        guarantee: int | str = 0,
        weight: float = 1.0,
    ) -> None:
        check_type("spec", spec, CacheSpec)
        check_name("driver", driver, such_as="auto")
        check_flag("accounting", accounting)
        check_flag("strict", strict)
        device = check_device(device)
        if strict and (device != "cpu" or accounting):
            raise ConfigError(
                "strict=True writes past lengths with the CPU: use device='cpu', and no accounting"
            )
        if accounting:
            if device != "cpu" or driver not in ("auto", "host"):
                raise ConfigError(
                    f"accounting=True counts on the host: use device='cpu' and driver='host', "
                    f"not device={device!r} and driver={driver!r}"
                )
            driver = "host-accounting"
        opened = open_driver(
            spec,
            device=device,
            driver=driver,
            page_size=page_size,
            layout=layout,
            layers_per_arena=layers_per_arena,
            peer_access=peer_access,
        )
        shared = isinstance(memory, str) and memory == "shared"
        plain = all(map(is_number, (guarantee, weight))) and (guarantee, weight) == (0, 1.0)
        if not shared and not plain:
            raise ConfigError("guarantee and weight are of leases: use them with memory='shared'")
        budget = budget_of(memory) if not shared else None
        wants_auto = isinstance(read_ahead, str) and read_ahead == "auto"
        ahead = opened.read_ahead if wants_auto else read_ahead
        if budget is None:
            budget = self._lease = SharedMemory(device, guarantee=guarantee, weight=weight)
            self._owns_lease = True
        try:
            self._open(spec, opened.geometries, opened.driver, budget, background, ahead, strict)
        except BaseException:
            self._leave()
            raise

    @classmethod
    def on_driver(
        cls,
        spec: CacheSpec,
        driver: _native.Driver,
        *,
        layout: str,
        memory: int | str | Budget,
        layers_per_arena: int | None = None,
        background: bool = True,
        read_ahead: int = 0,
        strict: bool = False,
    ) -> KVCache:
        """Open a cache on a driver that was made before, such as one wrapped in adaptors."""
        cache = cls.__new__(cls)
        check_type("spec", spec, CacheSpec)
        check_type("driver", driver, _native.Driver)
        geometries = spec.geometries(layout, driver.page_size, layers_per_arena)
        budget = budget_of(memory)
        cache._open(spec, geometries, driver, budget, background, read_ahead, strict)
        return cache

    def _open(
        self,
        spec: CacheSpec,
        geometries: tuple[Geometry, ...],
        driver: _native.Driver,
        budget: Budget,
        background: bool,
        read_ahead: int | str,
        strict: bool,
    ) -> None:
        check_flag("background", background)
        check_flag("strict", strict)
        ahead = whole_number(read_ahead)
        if ahead is None or not 0 <= ahead < 2**31:
            raise ConfigError(
                f"read_ahead={shown(read_ahead)}: use a number of tokens, 0 for none, or 'auto'"
            )
        self._lease = budget if isinstance(budget, SharedMemory) else None
        self._keepers = Keepers()
        driver = ranged_driver(driver)
        self._states = state_rows(spec, driver.page_size)
        self._native = _native.Cache(
            driver=driver,
            groups=native_groups(spec, geometries, self._states),
            slots=spec.max_slots,
            max_tokens=spec.max_tokens,
            budget=budget,
            # A slab is what goes back when neighbours ask.
            slab_bytes=self._lease.chunk_bytes if self._lease is not None else 0,
            background=background,
            read_ahead=ahead,
            strict=strict,
        )
        self._dropped = DroppedSlots(self._native)
        self._has_windows = any(spec.windows)
        self._tensors = LayerTensors(self._native, spec, geometries, self._states)
        self._own(spec, geometries, driver, self._native)

    def acquire(self, tokens: int = 0) -> Slot:
        """Return a slot for a new request: the free one whose pages best fit ``tokens``.

        Nothing is mapped yet: :meth:`step` does that. Raises
        :class:`~pyvattn.errors.OutOfSlots` where all are live, and
        :class:`~pyvattn.errors.LengthError` for more than ``max_tokens``.

        Keep the slot until :meth:`release`. One that is dropped before its first
        :meth:`step`, as by Ctrl-C, is released at the next call; one with tokens, which
        kernels may still read, stays live and is found in :meth:`live_slots`. A
        ``ResourceWarning`` names it at the next call of this, of :meth:`admit`,
        :meth:`can_admit` or :meth:`close`, and where a step runs out of memory.
        """
        self._dropped.recover()
        return self._with_room(self._native.acquire, tokens)

    @ranged("pyvattn.admit")
    def admit(self, tokens: int) -> Slot:
        """:meth:`acquire` and :meth:`step` in one call: a slot whose first tokens are backed.

        Whole or not at all: where no slot or too few pages are left, nothing has changed.
        Raises what the two raise, but never :class:`~pyvattn.errors.BusyError`.
        """
        self._dropped.recover()
        return self._with_room(self._native.admit, tokens)

    def release(self, slot: Slot, after: object = None) -> None:
        """End a request. Its pages stay, zeroed, for the next one until memory is short.

        No page is zeroed, unmapped or given away before ``after`` has passed: a
        stream or a recorded event on which kernels still use the slot. By default
        that is the stream that torch is using in this thread (see
        :func:`pyvattn.fences.fence_after`).

        Raises :class:`~pyvattn.errors.SlotError` for a slot that is not live.
        """
        self._native.release(slot, self._fence(after))

    @ranged("pyvattn.step")
    def step(self, lengths: Mapping[Slot, int], *, rollback: int = 0) -> None:
        """Back the first ``lengths[slot]`` tokens of every slot named, whole or not at all.

        Slots that are not named keep their length. A length may also fall, as
        when speculated tokens are rejected; the pages stay. Raises
        :class:`~pyvattn.errors.OutOfMemory`,
        :class:`~pyvattn.errors.SlotError`,
        :class:`~pyvattn.errors.LengthError`,
        :class:`~pyvattn.errors.BusyError` or
        :class:`~pyvattn.errors.DriverError`, with the cache unchanged.

        Layers with a window (:class:`pyvattn.LayerGroup`) leave behind what lies before it as
        a slot grows, counted from the length that it had, where the next query stands: those
        tokens may be read by kernels that were launched on torch's stream before this call and
        by none after it. They are gone where the step fails as well, and no length may fall
        below the one that the slot had; with ``rollback`` it may, by so many tokens. Where
        another pass takes the place of one that failed, step back to where that began first.
        """
        self._with_room(self._native.step, _dict_of(lengths), *self._passage(rollback))

    @ranged("pyvattn.step")
    def step_array(self, rows: Any, lengths: Any, *, rollback: int = 0) -> None:
        """:meth:`step` for arrays: ``rows[i]`` gets ``lengths[i]`` tokens.

        Both are one-dimensional contiguous int64 buffers (numpy arrays, say) of
        the same size; a row is ``slot.index``. Keep the slots too: the caller keeps
        track of which request each row belongs to.
        """
        self._with_room(self._native.step_rows, rows, lengths, *self._passage(rollback))

    @ranged("pyvattn.step")
    def try_step(self, lengths: Mapping[Slot, int], *, rollback: int = 0) -> bool:
        """:meth:`step` where nothing has to be waited for but the driver; say if it was done.

        ``False``, with nothing changed, where pages would first have to be zeroed or be
        let go of by running kernels or the mapper thread: do something else, and try
        again. Raises what :meth:`step` raises, and
        :class:`~pyvattn.errors.OutOfMemory` only where waiting would not help.
        """
        passage = self._passage(rollback)
        return self._with_room(self._native.try_step, _dict_of(lengths), *passage)

    def _passage(self, rollback: int) -> tuple[_native.Fence | None, int]:
        """Return what a step says of windows: nothing where there are none."""
        tokens = whole_number(rollback)
        if tokens is None or not 0 <= tokens < 2**31:
            raise ArgumentError(f"rollback={shown(rollback)}: use a number of tokens, 0 for none")
        return (self._fence(None), tokens) if self._has_windows else (None, 0)

    @ranged("pyvattn.trim")
    def trim(
        self,
        slot: Slot,
        length: int | None = None,
        after: object = None,
        *,
        front: int | None = None,
    ) -> None:
        """Give pages of a slot back: past ``length`` tokens, below ``front`` tokens, or both.

        Without either: those past its length. ``length`` shortens the slot. It waits for
        ``after``, as :meth:`release` takes it, and for zeros; a :meth:`step` to a smaller
        length keeps the pages instead.

        ``front`` says that the first so many tokens are not read any more once ``after`` has
        passed, as below a sliding window. Whole pages of them go back then, which is not waited
        for: the slot's own growth takes them first, without zeroing, and the mapper thread gives
        the rest to the pool. What others share only loses a holder. Lengths count on from the
        start of the row, and none may fall below ``front`` again, nor to where the next query
        would lack some of a layer's window. What is read there is the caller's fault: zeros, old
        tokens or, where nothing is mapped on a GPU, an illegal access; with ``strict`` NaN as long
        as it is mapped.

        Raises :class:`~pyvattn.errors.SlotError`, :class:`~pyvattn.errors.LengthError` for more
        tokens than the slot has, both with nothing changed, and
        :class:`~pyvattn.errors.DriverError`, after which the slot is shortened but keeps its
        pages.
        """
        if length is None and front is None:
            length = self._native.length(slot)
        fence = self._fence(after)
        if length is not None and front is not None:
            _check_front(front, length)
        if length is not None:
            self._native.trim(slot, length, fence)
        if front is not None:
            self._native.trim_front(slot, front, fence)

    def prefetch(self, lengths: Mapping[Slot, int]) -> None:
        """Ask for the pages of a later :meth:`step`, to be mapped in the background.

        Returns at once. What cannot be mapped now is left to the step itself. Raises
        :class:`~pyvattn.errors.SlotError` and
        :class:`~pyvattn.errors.LengthError`.
        """
        self._native.prefetch(_dict_of(lengths))

    def drain(self) -> None:
        """Wait until the mapper thread has done everything it was asked for."""
        self._native.drain()

    def can_admit(self, tokens: int) -> bool:
        """Whether a request of ``tokens`` would find a slot and pages now."""
        self._dropped.recover()
        while not self._native.can_admit(tokens):
            if not self._could_have(tokens) or not self._keepers.give_up():
                return False
        return True

    def add_keeper(self, keeper: Keeper) -> None:
        """Let ``keeper`` hold slots that it gives up where the cache needs what they have."""
        self._keepers.add(keeper)

    def remove_keeper(self, keeper: Keeper) -> None:
        """Ask ``keeper`` no more."""
        self._keepers.remove(keeper)

    def resize(self, memory: int | str) -> int:
        """Move the memory limit as any owner does; slots that keepers hold are given up first."""
        while True:
            try:
                return super().resize(memory)
            except LimitError:
                if not self._keepers.give_up():
                    raise

    def give_back(self) -> int:
        """Give back as any owner does; slots that keepers hold are given up first."""
        allocated = super().give_back()
        while self._held() > self.stats().memory_limit and self._keepers.give_up():
            allocated = super().give_back()
        return allocated

    def _with_room(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Call until it finds memory and a row, or no keeper has anything left."""
        try:
            return call(*arguments)
        except (OutOfMemory, OutOfSlots) as error:
            failure = error
        self._dropped.recover()
        return self._keepers.retry(failure, lambda: call(*arguments))

    def _could_have(self, tokens: int) -> bool:
        """Whether there would be room for ``tokens`` if every keeper gave up what it holds."""
        s = self.stats()
        to_come = (s.memory_limit - self._held()) // s.page_size
        room = (
            to_come
            + s.pages_free
            + s.pages_retained
            + s.pages_quarantined
            + self._keepers.kept_pages()
        )
        return self._pages_for(tokens) <= room

    def _pages_for(self, tokens: int) -> int:
        """Return the pages that so many tokens and their states take, guards aside."""
        states = self._states.pages if self._states is not None and tokens else 0
        return states + sum(g.pages(tokens) * g.arenas for g in self._geometries)

    def length(self, slot: Slot) -> int:
        """Return the tokens that the last step backed for a live slot."""
        return self._native.length(slot)

    def live_slots(self) -> dict[Slot, int]:
        """Return every slot that is live, and the tokens that the last step backed for it.

        Slots that were dropped without :meth:`release` are among them.
        """
        return dict(self._native.live_slots())

    def live_pages(self) -> dict[Slot, int]:
        """Return every live slot, and how many pages lie under its row in all arenas.

        Pages that were read ahead or inherited are among them.
        """
        return dict(self._native.live_pages())

    def layer(self, index: int, from_dlpack: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
        """Return the K and V of one layer, each ``[max_slots, max_tokens, kv_heads, head_dim]``.

        Of a layer whose rows are rings it is ``[max_slots, 2 * ring, …]``, with token ``p`` at
        ``p`` modulo ``ring`` and, the same memory, ``ring`` further.

        They share memory with the cache and stay valid while it is open; after
        :meth:`close` they must not be written. With MLA, K is the latent vector
        and the rotary key side by side, and V the latent part of it.

        Write the first ``length(slot)`` tokens of a live slot and nothing else. What lies
        behind has no memory of its own: on the host such a write ends the process, on a
        GPU it is an illegal memory access or is lost, and where it meets a page that
        already lies there, nobody zeroes it for the next request. ``torch.save`` of a
        slice writes the whole storage, all reserved addresses: save a ``.clone()``.

        Copy from another GPU by way of torch's memory, ``k[...].copy_(other.to(k.device))``,
        unless that GPU is one of :attr:`peers`. torch does not ask whether it may write here:
        a straight copy fails with "invalid argument", or ends the process with an illegal
        memory access.

        ``from_dlpack`` makes the tensors (default: ``torch.from_dlpack``;
        ``numpy.from_dlpack``, ``cupy.from_dlpack`` … work as well where they
        know the dtype). Float8 is handed over as bytes, and viewed as float8
        with torch only. Raises :class:`~pyvattn.errors.LayerError` for a layer that
        the spec does not have; -1 is the last.
        """
        if from_dlpack is None:
            return self._tensors.of_torch(index)
        return self._tensors.made_by(index, from_dlpack)

    def state(self, index: int, from_dlpack: Callable[[Any], Any] | None = None) -> dict[str, Any]:
        """Return the state of one layer of a :class:`pyvattn.StateGroup`: its tensors by name.

        Each is ``[max_slots, …]``, the rest as its group says, or ``[max_slots, copies, …]`` where
        that has several copies. ``index`` counts the layers that keep a state.

        They are zero when a slot gets its first tokens, and what the caller writes from then on:
        a shorter length leaves them as they are. Where a slot has no tokens nothing lies behind
        them; for the rest they are as :meth:`layer` has it, ``from_dlpack`` too. Raises
        :class:`~pyvattn.errors.LayerError` for a layer that keeps none; -1 is the last.
        """
        if from_dlpack is None:
            return self._tensors.state_of_torch(index)
        return self._tensors.state_made_by(index, from_dlpack)

    def stats(self) -> Stats:
        """Count pages, bytes, driver calls and time."""
        return Stats.read(self._native.stats())

    def close(self, after: object = None) -> None:
        """Give everything back: see :meth:`pyvattn.opened.Opened.close`."""
        lost = self._dropped.lost() if is_left_open(self._native) else []
        self._tensors.forget()
        super().close(after)
        self._leave()
        report(lost)

    @property
    def lease(self) -> SharedMemory | None:
        """What its memory is leased by: ask and wait there; ``None`` where it does not share."""
        return self._lease

    def _leave(self) -> None:
        if self._lease is not None and self._owns_lease:
            self._lease.close()

    def _held(self) -> int:
        """Return the bytes that count against the limit: others may hold some of a lease."""
        return self._bytes_allocated() if self._lease is None else self._lease.held

    def _bytes_allocated(self) -> int:
        return self.stats().bytes_allocated


def _check_front(front: object, length: object) -> None:
    begin, end = whole_number(front), whole_number(length)
    if begin is None or end is None or begin > end:
        raise LengthError(f"front={shown(front)} is not a number of tokens to {shown(length)}")


def _dict_of(lengths: Mapping[Slot, int]) -> dict[Slot, int]:
    if type(lengths) is dict:
        return lengths
    if not hasattr(lengths, "keys"):
        raise ArgumentError(f"lengths={shown(lengths)}: pass a dict of slots and their tokens")
    return dict(lengths)
