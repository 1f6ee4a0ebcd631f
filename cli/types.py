"""Parameter types: sizes as people write them."""

from __future__ import annotations

import click

from pyvattn.errors import ConfigError
from pyvattn.units import parse_size


class Size(click.ParamType):
    """A number of bytes such as ``64K`` or ``8GiB``; with ``auto`` allowed, also that word."""

    name = "size"

    def __init__(self, auto: bool = False) -> None:
        self.auto = auto

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the bytes, or ``"auto"``."""
        if self.auto and value == "auto":
            return "auto"
        try:
            return parse_size(value if isinstance(value, (int, str)) else str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)
