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


@pytest.mark.parametrize("specs", [(FULL,), (SLIDING,), (FULL, SLIDING, SLIDING)])
def test_full_attention_and_sliding_windows_are_taken(specs):
    assert check_groups(groups(*specs), []) == list(specs)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"block_size": 32}, r"16 of \[2, 64, 64, .*\] and 32 of \[2, 64"),
        ({"num_kv_heads": 4}, r"16 of \[2, 64, 64, .*\] and 16 of \[4, 64"),
        ({"head_size": 128}, r"16 of \[2, 128, 128, .*\] and 16 of \[2, 64"),
        ({"head_size_v": 32}, r"16 of \[2, 64, 32, .*\] and 16 of \[2, 64, 64"),
        ({"dtype": torch.float8_e4m3fn}, "bfloat16.* and .*float8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_groups_whose_blocks_differ_are_refused(change, named):
    other = interface.SlidingWindowSpec(**{**SHAPE, **change}, sliding_window=128)
    with pytest.raises(UnsupportedError, match=f"{named}.*--disable-hybrid-kv-cache-manager"):
        check_groups(groups(FULL, other), [])


@pytest.mark.parametrize(
    ("specs", "named"),
    [
        ((FULL, STATE), "FullAttentionSpec, MambaSpec"),
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


def test_an_engine_that_shares_its_memory_has_one_group():
    assert check_groups(groups(FULL), [], leases=True) == [FULL]
    with pytest.raises(UnsupportedError, match=r"2 groups of layers with .*memory='shared': leave"):
        check_groups(groups(FULL, SLIDING), [], leases=True)
