"""``pyvattn demo``: a small model served from the contiguous cache, which checks itself."""

from __future__ import annotations

from typing import Any

import click

from pyvattn.cli.sizes import size_option


@click.command()
@click.option("--slots", type=int, default=8, help="Requests served at once [8].")
@click.option("--requests", type=int, default=24, help="Prompts to serve [24].")
@click.option("--max-new-tokens", type=int, default=64, help="Most tokens for each prompt [64].")
@click.option("--driver", default="host", help="Driver of the cache [host].")
@size_option("--page-size", auto=True, default="auto", help="Page size [auto].")
@click.option(
    "--layout",
    type=click.Choice(["auto", "layer", "token"]),
    default="auto",
    help="Layout of the cache [auto].",
)
@size_option("--memory", default="1GiB", help="Memory limit of the cache [1GiB].")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    default="out",
    help="Folder for demo.png and demo.json [out].",
)
@click.option("--check/--no-check", default=True, help="Compare with the model's own cache.")
@click.option("--texts/--no-texts", default=True, help="Print what was generated.")
def command(**options: Any) -> None:
    """Serve prompts with SmolLM2-135M over a few slots, and check every token.

    The exit code is 1 if a token differs from those of the model's own cache.
    """
    from pyvattn.demo import run

    run(**options)
