# SPDX-License-Identifier: Apache-2.0
"""What a user may set: ``--additional-config '{"pyvattn": {…}}'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from pyvattn.errors import ConfigError
from pyvattn.geometry import check_page_size
from pyvattn.text import shown
from pyvattn.units import parse_size
from pyvattn.whole_numbers import whole_number

__all__ = ["Options"]

_KEY = "pyvattn"
_OF_LEASES = ("budget", "guarantee", "weight", "name", "weights", "sleep_weights")


@dataclass(frozen=True)
class Options:
    """The options of the plug-in, with their defaults.

    ``driver`` and ``page_size`` (bytes, ``"64K"``) are those of :class:`pyvattn.KVCache`.
    ``rows``: address rows of each of vLLM's groups of layers, by default two for each of
    ``--max-num-seqs``, so that a request seldom waits for a row that kernels still read.
    ``map_in_background``: map in a thread from the moment block ids arrive. ``kernel``: of
    ``--attention-backend CUSTOM``, one that :func:`pyvattn.attention.attend` knows, or
    ``"module:attribute"`` of a kernel of the user's. ``late_binding``: copy what blocks hold for
    the prefix cache, rather than map blocks anew. ``home_view``: map each block at the place of
    vLLM's block id as well, for what finds KV by these; by default where a KV connector does.

    The next two are the scheduler's, which ``--scheduler-cls`` names. ``order_blocks``: hand out
    blocks in the order of rows that have them. ``guard_tokens``: how far past every length there
    are blocks, for kernels that read whole tiles; by default as far as the kernel that runs does.

    ``memory="shared"``: lease KV memory from what all engines of the user share, with the
    ``budget``, ``guarantee``, ``weight`` and ``name`` of :class:`pyvattn.SharedMemory`; with its
    ``weights`` the memory of weights as well, before vLLM loads them. Then vLLM's sleep puts
    weights away as well, or with ``sleep_weights=False`` KV memory alone.

    With the swap connector ``swap_memory`` is the host memory of each worker, which is taken at
    the start; ``swap="auto"``: copy what is preempted as long as that takes less than to compute
    it anew, ``"always"``: whatever it takes.
    """

    driver: str = "auto"
    page_size: int | str = "auto"
    rows: int | None = None
    map_in_background: bool = True
    kernel: str = "auto"
    late_binding: bool = False
    order_blocks: bool = True
    guard_tokens: int | None = None
    memory: str = "own"
    budget: int | str | None = None
    guarantee: int | str = 0
    weight: float = 1.0
    name: str | None = None
    weights: int | str = 0
    sleep_weights: bool = True
    swap_memory: int | str = "8GiB"
    home_view: bool | None = None
    swap: str = "auto"

    def row_count(self, requests: int, groups: int = 1) -> int:
        """Return how many rows there are where so many requests run at once.

        A request has one in each of vLLM's groups of layers. Row 0 is no request's.
        """
        return groups * ((self.rows or 2 * requests + 1) - 1) + 1

    @classmethod
    def of(cls, additional_config: object) -> Options:
        """Read them; raises :class:`~pyvattn.errors.ConfigError` naming what cannot be read."""
        given = additional_config.get(_KEY, {}) if isinstance(additional_config, Mapping) else {}
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"--additional-config {_KEY}={shown(given)}: use an object of options"
            )
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(
                f"--additional-config {_KEY} has no option {', '.join(map(shown, unknown))}: use "
                f"{', '.join(known)}"
            )
        options = cls(**given)
        options._check()
        return options

    def _check(self) -> None:
        if self.page_size != "auto":
            check_page_size(self.page_size)
        if self.rows is not None and (whole_number(self.rows) or 0) < 2:
            raise ConfigError(f"{_KEY} option rows={shown(self.rows)}: use a whole number from 2")
        for name in ("map_in_background", "late_binding", "order_blocks", "sleep_weights"):
            if not isinstance(given := getattr(self, name), bool):
                raise ConfigError(f"{_KEY} option {name}={shown(given)}: use true or false")
        guard = 0 if self.guard_tokens is None else whole_number(self.guard_tokens)
        if guard is None or guard < 0:
            given = shown(self.guard_tokens)
            raise ConfigError(f"{_KEY} option guard_tokens={given}: use a whole number from 0")
        if self.memory not in ("own", "shared"):
            raise ConfigError(f"{_KEY} option memory={shown(self.memory)}: use own or shared")
        parse_size(self.swap_memory, f"{_KEY} option swap_memory")
        if not (self.home_view is None or isinstance(self.home_view, bool)):
            given = shown(self.home_view)
            raise ConfigError(f"{_KEY} option home_view={given}: use true or false")
        if self.swap not in ("auto", "always"):
            raise ConfigError(f"{_KEY} option swap={shown(self.swap)}: use auto or always")
        self._check_lease()
        self._check_homes()
        for name in ("driver", "kernel"):
            if not isinstance(given := getattr(self, name), str):
                raise ConfigError(f"{_KEY} option {name}={shown(given)}: use a {name}'s name")

    def _check_homes(self) -> None:
        for name in ("late_binding", "home_view"):
            if self.memory == "shared" and getattr(self, name):
                raise ConfigError(
                    f"{_KEY} option {name}=True keeps every block mapped, and memory='shared' "
                    "gives blocks away: leave one of them out"
                )
        if self.late_binding and self.home_view:
            raise ConfigError(
                f"{_KEY} option late_binding=True changes what stands behind a block id, and "
                "home_view=True keeps it in place: leave one of them out"
            )

    def _check_lease(self) -> None:
        for name in ("budget", "guarantee", "weights"):
            if given := getattr(self, name):
                parse_size(given, f"{_KEY} option {name}")
        if self.memory == "shared":
            return
        for field in fields(self):
            is_of_lease = field.name in _OF_LEASES
            if is_of_lease and (given := getattr(self, field.name)) != field.default:
                raise ConfigError(
                    f"{_KEY} option {field.name}={shown(given)} is of memory='shared': add that, "
                    f"or leave {field.name} out"
                )
