# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    """On tensors this small more threads only wait for each other."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _kernels_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it: other tests of the process list the kernels."""
    registry = pytest.importorskip("pyvattn.attention.registry")
    monkeypatch.setattr(registry, "_KERNELS", dict(registry._KERNELS))
