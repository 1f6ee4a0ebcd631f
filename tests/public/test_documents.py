# SPDX-License-Identifier: Apache-2.0
"""The Python code of README and of the pages runs as it stands, on the CPU in place of a GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_models import VOCABULARY, make_llama, torch, transformers

import pyvattn
from pyvattn import CacheSpec, KVCache
from pyvattn.attention import registry
from pyvattn.integrations.transformers import Engine, Request, spec_for

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "driver_patch").rglob("*.md")),
]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
IMPORT = re.compile(r"^from pyvattn\S* import (?:\([^)]*\)|[^(\n]+)$", re.MULTILINE)
# The host stands in for a GPU and its drivers.
ON_THE_CPU = {
    r'device="cuda(:0)?"': 'device="cpu"',
    r'driver="(stock-uvm|cumem|patched)"': 'driver="host"',
}


class Tokenizer:
    """A token for each letter, as tokenizers are called."""

    def __call__(self, texts, padding=False, return_tensors=None):
        ids = [[2 + ord(letter) % (VOCABULARY - 2) for letter in text] for text in texts]
        if not padding:
            return {"input_ids": ids}
        longest = max(map(len, ids))
        padded = [[0] * (longest - len(each)) + each for each in ids]
        mask = [[0] * (longest - len(each)) + [1] * len(each) for each in ids]
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}

    def decode(self, tokens):
        return " ".join(map(str, tokens))


@pytest.fixture(autouse=True)
def _kernels_as_before(monkeypatch):
    """What a page registers is gone after it: other tests of the process list the kernels."""
    monkeypatch.setattr(registry, "_KERNELS", dict(registry._KERNELS))


@pytest.fixture(autouse=True)
def _no_ledger_yet(monkeypatch, tmp_path):
    """A page that shares memory is the first to do so."""
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def names():
    """What the pages say that a reader has: a model, prompts, a cache that is open."""
    answers: list[list[int]] = []
    model = make_llama()
    model.generation_config = transformers.GenerationConfig(max_new_tokens=3)
    prompts = ["Once upon a time", "The sky"]
    tokens = Tokenizer()(prompts)["input_ids"]
    spec = spec_for(model, max_slots=8, max_tokens=512)
    with KVCache(spec, device="cpu", memory="64MiB") as cache:
        yield {
            "pyvattn": pyvattn,
            "KVCache": KVCache,
            "spec": CacheSpec(2, 2, 8, "float32", max_slots=4, max_tokens=4096),
            "stream": None,
            "model": model,
            "cache": cache,
            "tokenizer": Tokenizer(),
            "prompts": prompts,
            "prompt": tokens[0],
            "inputs": Tokenizer()(prompts, padding=True),
            "another_generation_config": transformers.GenerationConfig(do_sample=True),
            "answer": answers.append,
        }


def blocks() -> Iterator[object]:
    for page in PAGES:
        for number, code in enumerate(BLOCK.findall(page.read_text()), 1):
            yield pytest.param(page, code, id=f"{page.name}-{number}")


@pytest.mark.parametrize(("page", "code"), list(blocks()))
def test_the_code_of_a_page_runs(names, page, code):
    before = dict(names)
    for line in IMPORT.findall(page.read_text()):
        exec(line, names)
    for ours, here in ON_THE_CPU.items():
        code = re.sub(ours, here, code)
    try:
        exec(compile(code, str(page), "exec"), names)
    finally:
        made = [value for name, value in names.items() if before.get(name) is not value]
        for value in made:
            if isinstance(value, (Engine, KVCache)):
                with suppress(RuntimeError):
                    value.close()
    for request in names.get("requests", []):
        assert isinstance(request, Request)
        assert request.done


def test_the_first_example_shows_what_the_cache_is(names):
    exec(BLOCK.search(PAGES[0].read_text())[1].replace("cuda:0", "cpu"), names)
    assert names["k"].shape == (256, 131072, 8, 128)
    assert names["cache"].closed
