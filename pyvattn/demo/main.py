# SPDX-License-Identifier: Apache-2.0
"""The main job: load, serve, check, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from pyvattn.arguments import check_flag, check_path
from pyvattn.cache import KVCache
from pyvattn.demo.check import reference_tokens
from pyvattn.demo.display import Display
from pyvattn.demo.model import Chat, load_chat
from pyvattn.demo.prompts import Prompt, load_prompts
from pyvattn.demo.report import print_answers, print_tables, print_verdict
from pyvattn.demo.result import Answer, DemoResult
from pyvattn.demo.serve import Served, serve
from pyvattn.errors import ConfigError, MismatchError
from pyvattn.integrations.transformers import spec_for
from pyvattn.plots import plot_demo
from pyvattn.samples import static_bytes
from pyvattn.text import shown
from pyvattn.whole_numbers import whole_number


@dataclass(frozen=True)
class Options:
    """What :func:`pyvattn.demo.run` was called with."""

    slots: int
    requests: int
    max_new_tokens: int
    driver: str
    page_size: int | str
    layout: str
    memory: int | str
    out: str | PathLike[str] | None
    check: bool
    texts: bool

    def __post_init__(self) -> None:
        for name, value, most in (
            ("slots", self.slots, 64),
            ("requests", self.requests, len(load_prompts())),
            ("max_new_tokens", self.max_new_tokens, 512),
        ):
            if not 1 <= (whole_number(value) or 0) <= most:
                raise ConfigError(f"{name}={shown(value)} is out of range: use 1 to {most}")
        if self.out is not None:
            check_path("out", self.out)
        check_flag("check", self.check)
        check_flag("texts", self.texts)


def run_demo(
    options: Options, console: Console | None = None, load: Callable[[], Chat] = load_chat
) -> DemoResult:
    """Run the demo with the model that ``load`` returns; see :func:`pyvattn.demo.run`."""
    console = console or Console()
    with console.status("Loading the model from its GGUF file ..."):
        started = time.perf_counter()
        chat = load()
        load_seconds = time.perf_counter() - started
    prompts = load_prompts()[: options.requests]
    encoded = [chat.encode(prompt) for prompt in prompts]
    served, longest, static = _serve(options, console, chat, prompts, encoded)

    started = time.perf_counter()
    expected = _reference(options, console, chat, encoded) if options.check else None
    check_seconds = time.perf_counter() - started if options.check else None

    result = DemoResult(
        slots=options.slots,
        longest=longest,
        static=static,
        cache=served.figures,
        answers=_answers(chat, prompts, served, expected),
        samples=served.samples,
        load_seconds=load_seconds,
        serve_seconds=served.seconds,
        check_seconds=check_seconds,
    )
    _report(options, console, result)
    return result


def _limits(options: Options) -> list[int]:
    """Return each request's most new tokens: different ones, so that they leave one by one."""
    span = options.max_new_tokens // 2 + 1
    return [options.max_new_tokens - 13 * index % span for index in range(options.requests)]


def _serve(
    options: Options,
    console: Console,
    chat: Chat,
    prompts: Sequence[Prompt],
    encoded: Sequence[Sequence[int]],
) -> tuple[Served, int, int]:
    """Serve everything; returns also the longest request in tokens, and a static cache's bytes."""
    room = int(chat.model.config.max_position_embeddings)
    spec = spec_for(chat.model, max_slots=options.slots, max_tokens=room)
    limits = _limits(options)
    longest = max(map(sum, zip(map(len, encoded), limits, strict=True)))
    static = static_bytes(options.slots, longest, spec.token_bytes)
    console.print(
        f"Serving {len(prompts)} prompts of {min(map(len, encoded))} to {max(map(len, encoded))} "
        f"tokens over {options.slots} slots with room for {room} tokens each.\n",
        highlight=False,
        soft_wrap=True,
    )
    display = Display(console, [prompt.title for prompt in prompts], options.slots, static)
    with (
        KVCache(
            spec,
            device="cpu",
            driver=options.driver,
            page_size=options.page_size,
            layout=options.layout,
            memory=options.memory,
        ) as cache,
        display.running(),
    ):
        served = serve(chat, cache, encoded, limits, display.watch)
    return served, longest, static


def _reference(
    options: Options, console: Console, chat: Chat, encoded: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Generate the same with the library's own cache, with a progress bar."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Checking against the model's own cache", total=len(encoded))
        return reference_tokens(
            chat,
            encoded,
            _limits(options),
            batch=options.slots,
            progress=lambda count: progress.advance(task, count),
        )


def _answers(
    chat: Chat, prompts: Sequence[Prompt], served: Served, expected: list[list[int]] | None
) -> list[Answer]:
    return [
        Answer(
            title=prompt.title,
            prompt_tokens=len(request.prompt),
            text=chat.decode(request.output),
            tokens=request.output,
            matches=None if expected is None else request.output == expected[index],
        )
        for index, (prompt, request) in enumerate(zip(prompts, served.requests, strict=True))
    ]


def _report(options: Options, console: Console, result: DemoResult) -> None:
    """Print and save everything; the verdict comes last."""
    if options.texts:
        print_answers(console, result.answers)
    print_tables(console, result)
    if options.out is not None:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        plot_demo(result, folder / "demo.png")
        (folder / "demo.json").write_text(json.dumps(result.as_dict(), indent=1) + "\n")
        console.print(f"Memory over time: {folder / 'demo.png'}", highlight=False)
    if not options.check:
        return
    wrong = [answer.title for answer in result.answers if not answer.matches]
    if wrong:
        raise MismatchError(
            f"{len(wrong)} of {len(result.answers)} prompts got other tokens than from the "
            f"model's own cache: {', '.join(wrong)}"
        )
    print_verdict(console, result)
