# SPDX-License-Identifier: Apache-2.0
"""The Python code of README and of the pages runs, on the CPU in place of a GPU."""

from __future__ import annotations

import re

import pytest
from page_code import BLOCK, PAGES, examples, reader, run
from tiny_models import make_llama

from pyvattn import CacheSpec
from pyvattn.attention import registry

# The host stands in for a GPU and its drivers.
ON_THE_CPU = {
    r'device="cuda(:0)?"': 'device="cpu"',
    r'driver="(stock-uvm|cumem|patched)"': 'driver="host"',
}


def on_the_cpu(code: str) -> str:
    for ours, here in ON_THE_CPU.items():
        code = re.sub(ours, here, code)
    return code


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
    spec = CacheSpec(2, 2, 8, "float32", max_slots=4, max_tokens=4096)
    with reader(make_llama(), spec) as had:
        yield had


@pytest.mark.parametrize(("page", "code"), list(examples()))
def test_the_code_of_a_page_runs(names, page, code):
    run(page, code, names, on_the_cpu)


def test_the_first_example_shows_what_the_cache_is(names):
    exec(on_the_cpu(BLOCK.search(PAGES[0].read_text())[1]), names)
    assert names["k"].shape == (256, 131072, 8, 128)
    assert names["cache"].closed
