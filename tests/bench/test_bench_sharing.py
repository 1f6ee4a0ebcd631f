# SPDX-License-Identifier: Apache-2.0
"""What `bench sharing` counts."""

from __future__ import annotations

import pytest

from pyvattn.bench.sharing import Options, measure

pytest.importorskip("torch", reason="fork() copies with torch")


def test_figures_are_those_of_pages_counted_by_hand():
    found = {each.name: each for each in measure(Options(rounds=3))}
    # 32 tokens a page: 62 of 63 pages are shared.
    samples = found["4 samples of 2,000 tokens, pages held / 4 requests alone"]
    assert samples.value == pytest.approx((62 + 4) / (4 * 63))
    # 125 of 132 pages are shared.
    prompts = found["64 requests that share 4,000 of 4,200 tokens, memory / unshared"]
    assert prompts.value == pytest.approx((125 + 64 * 7) / (64 * 132))
    assert samples.ok
    assert prompts.ok
    # 1,000 pages in each of 64 arenas, in slabs of 256.
    assert found["fork of 32,000 tokens, map calls"].value == 4 * 64
