# SPDX-License-Identifier: Apache-2.0
"""Options whose defaults are written once: where the code is that they are for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

Source = Callable[[click.Context], Callable[..., Any]]
"""Returns the function or class whose parameters a command's options fill, imported no sooner."""


class FilledOption(click.Option):
    """An option without a default of its own: help shows that of the parameter it fills."""

    def __init__(self, *args: Any, source: Source, **attributes: Any) -> None:
        self._source = source
        super().__init__(*args, **attributes)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return flags and help, with the default in brackets unless the help says it in words."""
        record = super().get_help_record(ctx)
        if record is None or self.help is None or "[" in self.help:
            return record
        default = signature(self._source(ctx)).parameters[str(self.name)].default
        if default is None or isinstance(default, bool):
            return record
        flags, words = record
        said = f"{self.help.removesuffix('.')} [{default}]."
        return flags, words.replace(self.help, said, 1)


def filler(source: Source) -> Callable[..., Callable[[_Command], _Command]]:
    """Return :func:`click.option` for options that fill parameters."""
    return partial(click.option, cls=FilledOption, source=source)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, to be passed on."""
    return {name: value for name, value in options.items() if value not in (None, ())}
