# SPDX-License-Identifier: Apache-2.0
"""How far a kernel reads past a row may depend on the problem, and the cache must guard as much."""

from __future__ import annotations

import pytest
import torch

from pyvattn import CacheSpec, KVCache, UnsupportedError
from pyvattn.attention import Kernel, attend, register, registry


class Tiled(Kernel):
    """Reads whole tiles where there is more than one query."""

    name, supports, guard_tokens = "tiled", "a test", 8

    def guard_for(self, problem):
        return self.guard_tokens if problem.most_queries > 1 else 0

    def attend(self, problem):
        return torch.zeros_like(problem.q)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry, "_KERNELS", dict(registry._KERNELS))
    register(Tiled())


def run(guard_tokens, queries):
    spec = CacheSpec(1, 2, 16, "float32", max_slots=2, max_tokens=64, guard_tokens=guard_tokens)
    with KVCache(spec, device="cpu", memory="8MiB") as cache:
        slot = cache.admit(10)
        out = attend(torch.ones(1, queries, 2, 16), cache, 0, [slot.index], [10], kernel="tiled")
        cache.release(slot)
    return out


def test_a_problem_that_needs_no_guard_is_done_without_one():
    assert run(0, queries=1).shape == (1, 1, 2, 16)


def test_a_problem_that_needs_one_is_done_with_it_and_refused_without():
    assert run(8, queries=2).shape == (1, 2, 2, 16)
    with pytest.raises(UnsupportedError, match=r"may read 8 tokens.*guard_tokens=8"):
        run(0, queries=2)
