# SPDX-License-Identifier: Apache-2.0
"""The demo: a real language model served out of one contiguous cache, on any machine.

SmolLM2-135M-Instruct answers 24 prompts by continuous batching over 8 slots,
checks its tokens against the library's own cache, and shows what the memory
was. Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvattn.demo.dependencies import require_dependencies

if TYPE_CHECKING:
    from os import PathLike

    from rich.console import Console

    from pyvattn.demo.result import DemoResult

__all__ = ["run"]


def run(
    *,
    slots: int = 8,
    requests: int = 24,
    max_new_tokens: int = 64,
    driver: str = "host",
    page_size: int | str = "auto",
    layout: str = "auto",
    memory: int | str = "1GiB",
    out: str | PathLike[str] | None = "out",
    check: bool = True,
    texts: bool = True,
    console: Console | None = None,
) -> DemoResult:
    """Serve the first ``requests`` prompts and report; needs no network.

    Each gets its own limit of new tokens, from half of ``max_new_tokens`` to all
    of it, so that requests leave and join one by one.
    ``driver``, ``page_size``, ``layout`` and ``memory`` are those of
    :class:`pyvattn.KVCache`. ``demo.png`` and ``demo.json`` are written into
    the folder ``out`` unless it is ``None``. ``check`` compares every prompt's
    tokens with the library's DynamicCache; ``texts`` prints what was generated.

    Raises :class:`~pyvattn.errors.MissingDependency` where a package is not
    installed, :class:`~pyvattn.errors.MismatchError` where the check fails, and
    :class:`~pyvattn.errors.ConfigError` for a count that is out of range.
    """
    require_dependencies()
    from pyvattn.demo.main import Options, run_demo

    options = Options(
        slots=slots,
        requests=requests,
        max_new_tokens=max_new_tokens,
        driver=driver,
        page_size=page_size,
        layout=layout,
        memory=memory,
        out=out,
        check=check,
        texts=texts,
    )
    return run_demo(options, console)
