# SPDX-License-Identifier: Apache-2.0
"""What a cache and a block pool have in common: memory of a driver, from opening to end."""

from __future__ import annotations

import warnings
from contextlib import suppress
from types import TracebackType
from typing import NoReturn, Protocol, SupportsIndex, TypeVar

from pyvattn import _native
from pyvattn.at_exit import Core, is_left_open, left_open_text, retire_at_exit
from pyvattn.errors import CopyError, DriverError, SpecError
from pyvattn.fences import fence_after
from pyvattn.geometry import Geometry
from pyvattn.logs import logger_of
from pyvattn.spec import CacheSpec
from pyvattn.units import format_page_size, parse_size

_log = logger_of(__name__)

# kDLCUDA of DLPack's device types.
_DLPACK_CUDA = 2

_Self = TypeVar("_Self", bound="Opened")


class OpenCore(Core, Protocol):
    """The core of it."""

    def resize(self, memory_limit: int) -> int:
        """Move the budget's limit; return the bytes that stay allocated."""

    def give_back(self) -> int:
        """Give back what is past the budget's limit; return the bytes that stay allocated."""

    def close(self) -> None:
        """Give everything back."""


class Opened:
    """Owns memory until :meth:`close`."""

    _spec: CacheSpec
    _geometries: tuple[Geometry, ...]
    _driver: _native.Driver
    _core: OpenCore

    def _own(
        self,
        spec: CacheSpec,
        geometries: tuple[Geometry, ...],
        driver: _native.Driver,
        core: OpenCore,
    ) -> None:
        self._spec = spec
        self._geometries = geometries
        self._driver = driver
        self._has_streams = _native.has_streams(driver.capabilities.name)
        self._core = core
        retire_at_exit(self, core)

    @property
    def spec(self) -> CacheSpec:
        """What it was opened for."""
        return self._spec

    @property
    def geometry(self) -> Geometry:
        """Where tokens lie: layout, page size, arenas and strides.

        Raises :class:`~pyvattn.errors.SpecError` for groups of layers, each of which has one.
        """
        if len(self._geometries) > 1:
            raise SpecError(
                f"the spec has {len(self._geometries)} groups of layers, each with a geometry of "
                "its own: use geometries"
            )
        return self._geometries[0]

    @property
    def geometries(self) -> tuple[Geometry, ...]:
        """Where the tokens of each group of layers lie; one where all are alike."""
        return self._geometries

    @property
    def chunk_tokens(self) -> int | None:
        """The most new tokens of a row to append before they are attended to; ``None``: any number.

        Where layers keep their window in a ring (:class:`pyvattn.LayerGroup`), new tokens take
        the place of older ones. A step may be longer than this: then append and attend to one
        piece of it after the other, layer by layer.
        """
        pairs = zip(self._geometries, self._spec.windows, strict=True)
        chunks = [geometry.chunk_tokens(window) for geometry, window in pairs]
        return min((chunk for chunk in chunks if chunk is not None), default=None)

    @property
    def driver(self) -> str:
        """Name of the driver in use."""
        return self._driver.capabilities.name

    @property
    def device(self) -> str:
        """Where its memory lies: ``"cpu"``, or ``"cuda:0"`` …"""
        kind, ordinal = self._driver.capabilities.dlpack_device
        return f"cuda:{ordinal}" if kind == _DLPACK_CUDA else "cpu"

    @property
    def peers(self) -> tuple[str, ...]:
        """The other GPUs that may read and write its memory; none without ``peer_access``."""
        return tuple(f"cuda:{ordinal}" for ordinal in self._driver.capabilities.peers)

    @property
    def page_size(self) -> int:
        """Granule of physical memory, in bytes."""
        return self._geometries[0].page_size

    @property
    def layout(self) -> str:
        """``"layer"`` or ``"token"``; of groups that differ in it ``"mixed"``."""
        layouts = {geometry.layout for geometry in self._geometries}
        return layouts.pop() if len(layouts) == 1 else "mixed"

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._core.closed

    def resize(self, memory: int | str) -> int:
        """Move the memory limit; return the bytes that stay allocated.

        What no request needs is given back first. Where the rest lies scattered over slabs,
        more than the limit stays allocated, and nothing new is until enough is free. A
        budget that is shared moves for all who share it. Raises
        :class:`~pyvattn.errors.LimitError` where more is held.
        """
        held = self._core.resize(parse_size(memory, "memory"))
        _log.info("memory limit %s: %d bytes stay allocated", memory, held)
        return held

    def give_back(self) -> int:
        """Give back what the budget no longer allows; return the bytes that stay allocated.

        For budgets whose limit has fallen by itself: as :meth:`resize` to that limit, but
        what is needed stays.
        """
        return self._core.give_back()

    def close(self, after: object = None) -> None:
        """Give everything back. Tensors keep their addresses, with nothing behind them.

        Waits first for ``after``, as :meth:`pyvattn.KVCache.release` takes it. Where the
        driver fails, :class:`~pyvattn.errors.DriverError` is raised once everything else
        was given back; calling again gives back the rest.
        """
        if not self.closed:
            # A device that takes no fence any more runs no kernels either.
            with suppress(DriverError):
                fence = self._fence(after)
                if fence is not None:
                    fence.wait()
        # Again after a close that failed: it gives back the rest.
        self._core.close()
        _log.debug("closed %r", self)

    def _bytes_allocated(self) -> int:
        raise NotImplementedError

    def _fence(self, after: object) -> _native.Fence | None:
        if after is None and not self._has_streams:
            return None
        _, device = self._driver.capabilities.dlpack_device
        return fence_after(self.driver, device, after)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        s = self._spec
        shapes = " and ".join(f"{p.layers} layers of {p.kv_heads}x{p.head_dim}" for p in s.parts)
        return (
            f"<{type(self).__name__} {shapes} {s.dtype}, "
            f"{s.max_slots} slots of {s.max_tokens} tokens, driver {self.driver}, pages of "
            f"{format_page_size(self.page_size)}, layout {self.layout}"
            f"{', closed' if self.closed else ''}>"
        )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise CopyError(
            f"a {type(self).__name__} cannot be copied or pickled: open one in each process with "
            "the same spec"
        )

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and is_left_open(core):
            text = left_open_text(self, self._bytes_allocated())
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)
