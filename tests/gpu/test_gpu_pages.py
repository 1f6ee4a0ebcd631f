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
from page_code import examples, reader, run
from tiny_models import make_llama

from pyvattn import CacheSpec
from pyvattn.attention import registry


@pytest.fixture(autouse=True)
def _as_before(monkeypatch, tmp_path):
    """What a page registers is gone after it, and one that shares memory is the first to do so."""
    monkeypatch.setattr(registry, "_KERNELS", dict(registry._KERNELS))
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.mark.parametrize(("page", "code"), list(examples()))
def test_the_code_of_a_page_runs_on_a_gpu(page, code):
    """With a model in bf16 whose heads are 64 wide, and the spec of Llama-3-8B on the GPU."""
    for driver in ("stock-uvm", "patched"):
        if f'device="cuda", driver="{driver}"' in code:
            require(driver)
    model = make_llama(hidden_size=512).to("cuda", torch.bfloat16)
    spec = CacheSpec(2, 2, 8, "float32", max_slots=4, max_tokens=4096)
    if 'device="cuda' in code:
        spec = CacheSpec(32, 8, 128, "bfloat16", max_slots=4, max_tokens=32768)
    with reader(model, spec) as names:
        run(page, code, names)
        torch.cuda.synchronize()
