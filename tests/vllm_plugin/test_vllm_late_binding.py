# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU with late binding: stock's tokens, fewer map calls, some copies."""

from __future__ import annotations

import pytest
from engines import WORKER, run

LATE = {"worker_cls": WORKER, "additional_config": {"pyvattn": {"late_binding": True}}}
PLAIN = {"worker_cls": WORKER}


@pytest.mark.parametrize(
    ("memory", "preempts"),
    [
        ({}, False),
        ({"num_gpu_blocks_override": 40}, False),
        ({"num_gpu_blocks_override": 13}, True),
    ],
    ids=["ample", "evicts", "preempts"],
)
def test_blocks_bound_late_change_no_token_and_are_mapped_less(tiny_llama, memory, preempts):
    stock, plain, late = (run(tiny_llama, **memory, **options) for options in ({}, PLAIN, LATE))
    assert late.tokens == stock.tokens
    assert late.cached == stock.cached > 0
    assert late.preemptions == stock.preemptions
    assert (late.preemptions > 0) == preempts
    assert late.stats["pages_copied"] > 0
    assert late.stats["map_calls"] < plain.stats["map_calls"]
    assert late.stats["blocks_placed"] == plain.stats["blocks_placed"]
