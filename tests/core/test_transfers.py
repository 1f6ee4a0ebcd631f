# SPDX-License-Identifier: Apache-2.0
"""Slots that go to another process: two of them, over gloo on this machine."""

from __future__ import annotations

import pytest

from pyvattn import CacheSpec, KVCache, TransferError, transfers

torch = pytest.importorskip("torch", reason="transfers are torch.distributed's")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)

# Each rank runs it; what it appends to `said` comes back to the test.
PROGRAM = """
import json, os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from pyvattn import *
from pyvattn.transfers import receive, send

rank, said = int(sys.argv[1]), []
dist.init_process_group(
    "gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2,
    timeout=timedelta(seconds=120),
)
SPEC = CacheSpec(2, 2, 16, "float32", max_slots=3, max_tokens=4096, guard_tokens=0)

def opened(**options):
    given = {"layout": "layer", "memory": "4MiB", "page_size": "64K", **options}
    return KVCache(SPEC, device="cpu", **given)

def fill(cache, slot, tokens):
    for layer in range(2):
        for number, tensor in enumerate(cache.layer(layer)):
            values = torch.arange(tokens * 32, dtype=torch.float32).view(tokens, 2, 16)
            tensor[slot, :tokens] = values + 1000 * (2 * layer + number)

def same(cache, slot, other, there):
    tokens = cache.length(slot)
    return cache.length(slot) == other.length(there) and all(
        torch.equal(a[slot, :tokens], b[there, :tokens])
        for layer in range(2)
        for a, b in zip(cache.layer(layer), other.layer(layer))
    )

def failure(call):
    try:
        call()
    except Error as error:
        return f"{type(error).__name__}: {error}"

with opened() as cache:
"""
AFTER = """
print("SAID " + json.dumps(said))
"""


@pytest.fixture
def ranks(two_ranks, tmp_path):
    """Run a body in two processes; returns what each said, and how each ended."""

    def run(body):
        indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
        return two_ranks(PROGRAM + indented + AFTER, tmp_path / "meeting")

    return run


def test_slots_arrive_as_they_are_and_refusals_are_errors_for_both(ranks):
    body = """
if rank == 0:
    slot = cache.admit(1500)
    fill(cache, slot, 1500)
    send(cache, slot, 1)
    send(cache, slot, 1, tokens=40)
    send(cache, cache.acquire(), 1)
    said.append(sorted(cache.live_slots().values()))
    said.append(failure(lambda: send(cache, slot, 1)))         # no room there
    said.append(failure(lambda: send(cache, slot, 1)))         # another layout there
    said.append(failure(lambda: send(cache, slot, 1, tokens=1501)))
    with opened(accounting=True) as counting:
        said.append(failure(lambda: send(counting, counting.admit(5), 1)))
    send(cache, slot, 1)                                       # and the link still works
else:
    other = cache.admit(1500)
    fill(cache, other, 1500)
    there = receive(cache, 0)
    said.append(same(cache, other, cache, there))
    cache.release(there)
    said.append(cache.length(receive(cache, 0)))
    for slot in cache.live_slots():
        cache.release(slot)
    said.append(cache.length(receive(cache, 0)))
    with opened(memory="256KiB") as small, opened(layout="token") as rows:
        for refusing in (small, rows):
            said.append(failure(lambda: receive(refusing, 0)))
            said.append(len(refusing.live_slots()))
    said.append(failure(lambda: receive(cache, 0)))
    said.append(failure(lambda: receive(cache, 0)))
    said.append(cache.length(receive(cache, 0)))
"""
    (first, a), (second, b) = ranks(body)
    assert (a, b) == (0, 0), (first, second)
    assert first[0] == [0, 1500]
    assert first[1].startswith("TransferError: rank 1 refused: ")
    assert "arenas, 4 of 128 bytes a token" in first[2]
    assert first[3].startswith("LengthError: tokens=1501")
    assert first[4].startswith("UnsupportedError: accounting")
    assert second[:3] == [True, 40, 0]
    assert second[3].startswith("OutOfMemory: ")
    assert second[5].startswith("TensorError: ")
    assert second[4] == second[6] == 0
    assert second[7].startswith("TransferError: rank 0 refused: tokens=1501")
    assert second[8].startswith("TransferError: rank 0 refused: accounting")
    assert second[9] == 1500


@pytest.mark.parametrize("dying", [0, 1])
def test_who_is_left_alone_gets_an_error_and_keeps_its_slots(ranks, dying):
    """The other one dies once the header has come, before any of the bytes."""
    body = f"""
import pyvattn.transfers
slot = cache.admit(1500)
if rank == {dying}:
    pyvattn.transfers._Link.move = lambda *given, **named: os._exit(7)
call = (lambda: send(cache, slot, 1)) if rank == 0 else (lambda: receive(cache, 0))
said.append(failure(call))
said.append(len(cache.live_slots()))
cache.step({{slot: 1600}})
"""
    found = ranks(body)
    assert found[dying][1] == 7, found
    said, code = found[1 - dying]
    assert code == 0, said
    # Over gloo small messages may be on their way before anybody notices that the other is gone.
    if dying == 0:
        assert said[0].startswith("TransferError: nothing more comes from or goes to rank 0")
    assert said[1] == 1


def test_what_is_no_rank_or_has_no_group_is_refused():
    spec = CacheSpec(1, 1, 8, max_slots=1, max_tokens=64)
    with KVCache(spec, device="cpu", memory="4MiB") as cache:
        with pytest.raises(TransferError, match="init_process_group"):
            transfers.send(cache, cache.admit(5), 1)
        with pytest.raises(TransferError, match="init_process_group"):
            transfers.receive(cache, 0)


def test_hostile_words_and_ranks_are_refused(ranks):
    body = """
from pyvattn.transfers import _Link
if rank == 0:
    for words in ({}, {"fronts": 3}, {"length": -1, "fronts": [0], "token_bytes": [1],
                  "arenas": [1], "state_bytes": 0}, {"length": "x\\n", "fronts": [],
                  "token_bytes": [], "arenas": [], "state_bytes": 0}):
        link = _Link(cache, 1, None)
        link.say(words)
        said.append(failure(link.hear))
    for size in (0, 1 << 40):
        dist.send(torch.tensor([size]), 1)
    dist.send(torch.tensor([3]), 1)
    dist.send(torch.tensor([0xff, 0, 1], dtype=torch.uint8), 1)
else:
    for _ in range(7):
        said.append(failure(lambda: receive(cache, 0)))
    for value in (1, 2, -1, None, 10**30, "0", 1.5):
        said.append(failure(lambda: send(cache, cache.acquire(), value)))
        for slot in cache.live_slots():
            cache.release(slot)
"""
    (first, a), (second, b) = ranks(body)
    assert (a, b) == (0, 0), (first, second)
    assert all(said.startswith("TransferError: rank 1 refused") for said in first)
    assert all(said.startswith(("TransferError: ", "TensorError: ")) for said in second), second
    assert all(said.isprintable() for said in second)
