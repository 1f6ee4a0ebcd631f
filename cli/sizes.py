# SPDX-License-Identifier: Apache-2.0
"""Options that are sizes as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pyvattn.errors import ConfigError
from pyvattn.units import parse_size

_Command = TypeVar("_Command", bound=Callable[..., Any])


def size_option(
    name: str, *, auto: bool = False, option: Callable[..., Any] = click.option, **attributes: Any
) -> Callable[[_Command], _Command]:
    """Return an option such as ``64K`` or ``8GiB``, in bytes; with ``auto`` also that word.

    ``option`` makes it, with ``attributes``.
    """

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
        if value is None or (auto and value == "auto"):
            return value
        try:
            return parse_size(value, name)
        except ConfigError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    made: Callable[[_Command], _Command] = option(
        name, metavar="SIZE", callback=parse, **attributes
    )
    return made
