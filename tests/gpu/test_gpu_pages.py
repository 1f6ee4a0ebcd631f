# SPDX-License-Identifier: Apache-2.0
"""The Python code of README and of the pages runs on a GPU as it stands."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path += [str(Path(__file__).parents[1] / name) for name in ("integrations", "public")]

from nvidia_drivers import require
from pages import examples, reader, run
from tiny_models import make_llama

from pyvattn.attention import registry


@pytest.fixture(autouse=True)
def _as_before(monkeypatch, tmp_path):
    """What a page registers is gone after it, and one that shares memory is the first to do so."""
    monkeypatch.setattr(registry, "_KERNELS", dict(registry._KERNELS))
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def names():
    """What a reader has, with a model in bf16 whose heads are as wide as models' are."""
    model = make_llama(hidden_size=512).to("cuda", torch.bfloat16)
    with reader(model) as had:
        yield had
        torch.cuda.synchronize()


@pytest.mark.parametrize(("page", "code"), list(examples()))
def test_the_code_of_a_page_runs_on_a_gpu(names, page, code):
    for driver in ("stock-uvm", "patched"):
        if f'device="cuda", driver="{driver}"' in code:
            require(driver)
    run(page, code, names)
