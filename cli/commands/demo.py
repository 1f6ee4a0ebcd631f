# SPDX-License-Identifier: Apache-2.0
"""``pyvattn demo``: a small model served from the contiguous cache, which checks itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from pyvattn.cli.filled import filler, given
from pyvattn.cli.sizes import size_option


def _run(_: click.Context) -> Callable[..., Any]:
    from pyvattn.demo import run

    return run


_option = filler(_run)


@click.command()
@_option("--slots", type=int, help="Requests served at once.")
@_option("--requests", type=int, help="Prompts to serve.")
@_option("--max-new-tokens", type=int, help="Most tokens for each prompt.")
@_option("--driver", help="Driver of the cache.")
@size_option("--page-size", auto=True, option=_option, help="Page size.")
@_option("--layout", type=click.Choice(["auto", "layer", "token"]), help="Layout of the cache.")
@size_option("--memory", option=_option, help="Memory limit of the cache.")
@_option("--out", type=click.Path(file_okay=False), help="Folder for demo.png and demo.json.")
@_option("--check/--no-check", default=None, help="Compare with the model's own cache.")
@_option("--texts/--no-texts", default=None, help="Print what was generated.")
def command(**options: Any) -> None:
    """Serve prompts with SmolLM2-135M over a few slots, and check every token.

    The exit code is 1 if a token differs from those of the model's own cache.
    """
    from pyvattn.demo import run

    run(**given(options))
