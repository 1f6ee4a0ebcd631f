# SPDX-License-Identifier: Apache-2.0
"""What a user may set: ``--additional-config '{"pyvattn": {…}}'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from pyvattn.errors import ConfigError
from pyvattn.geometry import check_page_size
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number

__all__ = ["Options"]

_KEY = "pyvattn"


@dataclass(frozen=True)
class Options:
    """The options of the plug-in, with their defaults.

    ``driver`` and ``page_size`` (bytes, ``"64K"``) are those of :class:`pyvattn.KVCache`.
    ``rows``: address rows, by default two for each of ``--max-num-seqs``, so that a request
    seldom waits for a row that kernels still read. ``map_in_background``: map in a thread
    from the moment block ids arrive.
    """

    driver: str = "auto"
    page_size: int | str = "auto"
    rows: int | None = None
    map_in_background: bool = True

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
        if not isinstance(self.map_in_background, bool):
            given = shown(self.map_in_background)
            raise ConfigError(f"{_KEY} option map_in_background={given}: use true or false")
        if not isinstance(self.driver, str):
            raise ConfigError(f"{_KEY} option driver={shown(self.driver)}: use a driver's name")
