# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU with late binding: stock's tokens, fewer map calls, some copies."""

from __future__ import annotations

import pytest
from engines import WORKER, run


def over_rows(**options):
    return {"worker_cls": WORKER, "additional_config": {"pyvattn": options}}


@pytest.mark.parametrize(
    ("memory", "preempts"),
    [
        ({"num_gpu_blocks_override": 40}, False),
        ({"num_gpu_blocks_override": 13}, True),
    ],
    ids=["evicts", "preempts"],
)
def test_blocks_bound_late_change_no_token_and_are_mapped_less(tiny_llama, memory, preempts):
    # Mapped in the step: a thread that maps meanwhile has a say in which rows can be taken.
    plain = run(tiny_llama, **memory, **over_rows(map_in_background=False))
    late = run(tiny_llama, **memory, **over_rows(map_in_background=False, late_binding=True))
    stock = run(tiny_llama, **memory)
    assert late.tokens == stock.tokens
    assert late.cached == stock.cached > 0
    assert late.preemptions == stock.preemptions
    assert (late.preemptions > 0) == preempts
    assert late.stats["pages_copied"] > 0
    assert late.stats["map_calls"] < plain.stats["map_calls"]
    assert late.stats["blocks_placed"] == plain.stats["blocks_placed"]


def test_blocks_bound_late_while_a_thread_maps_change_no_token(tiny_llama):
    stock = run(tiny_llama)
    late = run(tiny_llama, **over_rows(late_binding=True))
    assert late.tokens == stock.tokens
    assert late.stats["pages_copied"] > 0
