# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402
"""KV cache groups of real vLLM's that rows do not hold: refused by name, before memory is taken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

interface = pytest.importorskip("vllm.v1.kv_cache_interface")

from pyvattn import UnsupportedError
from pyvattn.integrations.vllm.refusals import check_groups

SHAPE = {"block_size": 16, "num_kv_heads": 2, "head_size": 64, "dtype": torch.bfloat16}
FULL = interface.FullAttentionSpec(**SHAPE)
SLIDING = interface.SlidingWindowSpec(**SHAPE, sliding_window=128)
STATE = interface.MambaSpec(shapes=((4, 8),), dtypes=(torch.float32,), block_size=16)


def groups(*specs):
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs])


def test_one_group_of_full_attention_is_taken():
    assert check_groups(groups(FULL), []) is FULL


@pytest.mark.parametrize(
    ("specs", "named"),
    [
        ((FULL, SLIDING), "FullAttentionSpec, SlidingWindowSpec"),
        ((SLIDING,), "SlidingWindowSpec"),
        ((FULL, STATE), "FullAttentionSpec, MambaSpec"),
        ((FULL, FULL), "FullAttentionSpec, FullAttentionSpec"),
        ((), "no KV cache"),
    ],
)
def test_others_are_named_with_what_to_change(specs, named):
    with pytest.raises(
        UnsupportedError, match=f"layers of the kinds {named}: .*leave out --worker"
    ):
        check_groups(groups(*specs), [])


def test_layers_that_read_anothers_cache_are_refused():
    with pytest.raises(UnsupportedError, match="share another's KV cache"):
        check_groups(groups(FULL), ["model.layers.3.self_attn.attn"])
