# SPDX-License-Identifier: Apache-2.0
"""What attend() and append() refuse: an error of ours that names the argument."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, Error, KVCache
from pyvattn.attention import append, attend

FLOATS = torch.tensor([0.0])
BAD = {
    "q": [3, None, torch.ones(2)],
    "slots": ["x", None, 0, [0.5], FLOATS, torch.tensor(0)],
    "lengths": ["4", None, 4, [4.5], FLOATS],
    "scale": ["x", [1]],
    "layer": ["0", 9, None],
    "kernel": ["nope", 3, None],
}
BAD_APPENDS = {
    "slots": [[0], 0, None, FLOATS, torch.tensor([True]), torch.tensor(9)],
    "positions": [[0], None, FLOATS, torch.tensor([64])],
    "k": [
        3,
        None,
        torch.ones(2),
        torch.ones(1, 3, 16),
        torch.ones(2, 2, 16),
        torch.ones(1, 2, 16).half(),
    ],
    "v": [[[1.0]], None, torch.ones(1, 2, 8), torch.ones(3, 2, 16), torch.ones(1, 2, 16).double()],
}


@pytest.fixture
def backed():
    """A cache and the row of a slot of 4 tokens."""
    spec = CacheSpec(1, 2, 16, "float32", max_slots=2, max_tokens=64)
    with KVCache(spec, device="cpu", memory="4MiB") as cache:
        slot = cache.acquire()
        cache.step({slot: 4})
        yield cache, slot.index


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_attend_refuses_it_by_name(backed, name, value):
    cache, row = backed
    given = {"q": torch.ones(1, 1, 2, 16), "layer": 0, "slots": [row], "lengths": [4]}
    with pytest.raises(Error, match=name) as caught:
        attend(cache=cache, **{**given, name: value})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in BAD_APPENDS.items() for v in values]
)
def test_append_refuses_it_by_name_and_writes_nothing(backed, name, value):
    cache, row = backed
    where, new = torch.tensor([row]), torch.ones(1, 2, 16)
    given = {"slots": where, "positions": torch.tensor([0]), "k": new, "v": new}
    with pytest.raises(Error, match=name) as caught:
        append(cache, 0, **{**given, name: value})
    assert str(caught.value).isprintable()
    assert not any(tensor[row, :4].any() for tensor in cache.layer(0))


@pytest.mark.parametrize("tokens", [2, 3])
def test_append_refuses_tokens_without_a_place(backed, tokens):
    cache, row = backed
    new = torch.ones(tokens, 2, 16)
    slots, positions = torch.tensor([[row]]), torch.tensor([0, 1, 2, 3])
    with pytest.raises(Error, match="name no place for each token of k"):
        append(cache, 0, slots, positions, new, new)
    assert not any(tensor[row, :4].any() for tensor in cache.layer(0))


@pytest.mark.parametrize("cache", [3, None, "cache"])
def test_what_is_no_cache_is_refused_by_name(cache):
    where, new = torch.tensor([0]), torch.ones(1, 2, 16)
    with pytest.raises(Error, match=f"cache={cache!r}: pass a KVCache"):
        attend(torch.ones(1, 1, 2, 16), cache, 0, [0], [1])
    with pytest.raises(Error, match=f"cache={cache!r}: pass a KVCache"):
        append(cache, 0, where, where, new, new)
