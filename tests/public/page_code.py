# SPDX-License-Identifier: Apache-2.0
"""The Python code of README and of the pages, and what they say that their reader has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tiny_models import VOCABULARY, torch, transformers

import pyvattn
from pyvattn import CacheSpec, KVCache
from pyvattn.integrations.transformers import Engine, Request, spec_for

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "driver_patch").rglob("*.md")),
]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
IMPORT = re.compile(r"^from pyvattn\S* import (?:\([^)]*\)|[^(\n]+)$", re.MULTILINE)


class Tokenizer:
    """A token for each letter, as tokenizers are called."""

    def __call__(self, texts, padding=False, return_tensors=None):
        ids = [[2 + ord(letter) % (VOCABULARY - 2) for letter in text] for text in texts]
        if not padding:
            return {"input_ids": ids}
        longest = max(map(len, ids))
        padded = [[0] * (longest - len(each)) + each for each in ids]
        mask = [[0] * (longest - len(each)) + [1] * len(each) for each in ids]
        return transformers.BatchEncoding(
            {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        )

    def decode(self, tokens):
        return " ".join(map(str, tokens))


def examples() -> Iterator[object]:
    """Every block of Python, as the parameters ``page`` and ``code``."""
    for page in PAGES:
        for number, code in enumerate(BLOCK.findall(page.read_text()), 1):
            yield pytest.param(page, code, id=f"{page.name}-{number}")


@contextmanager
def reader(model: Any, spec: CacheSpec) -> Iterator[dict[str, Any]]:
    """What the pages say that a reader has: a model, prompts, a cache that is open, a spec."""
    answers: list[list[int]] = []
    model.generation_config = transformers.GenerationConfig(max_new_tokens=3)
    prompts = ["Once upon a time", "The sky"]
    tokens = Tokenizer()(prompts)["input_ids"]
    with KVCache(
        spec_for(model, max_slots=8, max_tokens=512), device=model.device, memory="64MiB"
    ) as cache:
        yield {
            "pyvattn": pyvattn,
            "KVCache": KVCache,
            "spec": spec,
            "stream": None,
            "model": model,
            "cache": cache,
            "tokenizer": Tokenizer(),
            "prompts": prompts,
            "prompt": tokens[0],
            "inputs": Tokenizer()(prompts, padding=True).to(model.device),
            "another_generation_config": transformers.GenerationConfig(do_sample=True),
            "answer": answers.append,
        }


def run(page: Path, code: str, names: dict[str, Any], edit: Callable[[str], str] = str) -> None:
    """Run a page's block, edited, with ``names`` and what the page imports; close what it made."""
    before = dict(names)
    for line in IMPORT.findall(page.read_text()):
        exec(line, names)
    try:
        exec(compile(edit(code), str(page), "exec"), names)
    finally:
        made = [value for name, value in names.items() if before.get(name) is not value]
        for value in made:
            if isinstance(value, (Engine, KVCache)):
                with suppress(RuntimeError):
                    value.close()
    for request in names.get("requests", []):
        assert isinstance(request, Request)
        assert request.done
