# SPDX-License-Identifier: Apache-2.0
"""The benches of drivers and kernels: what of them a machine without a GPU can show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyvattn.bench import api, bandwidth, capacity
from pyvattn.cli import exits
from pyvattn.cli.app import run
from pyvattn.errors import ConfigError, DriverUnavailable
from pyvattn.traces import read_trace

OPERATIONS = {
    "reserve",
    "allocate",
    "map, new memory",
    "unmap",
    "map, reused memory",
    "free",
    "release",
}


def cuda_is_here() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


needs_no_gpu = pytest.mark.skipif(cuda_is_here(), reason="this machine has a GPU")


@needs_no_gpu
@pytest.mark.parametrize(
    "bench", ["api", "bandwidth", "attention", "overlap", "offload", "transfer"]
)
def test_benches_of_a_gpu_say_that_there_is_none(bench, tmp_path, monkeypatch, capsys):
    if bench in ("attention", "overlap", "offload", "transfer"):
        pytest.importorskip("torch")
    monkeypatch.setattr(sys, "argv", ["pyvattn", "bench", bench, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == exits.Exit.UNAVAILABLE
    assert capsys.readouterr().err.startswith("Error: ")
    assert list(tmp_path.iterdir()) == [], "a bench that did not run leaves no result"


@needs_no_gpu
def test_the_reason_is_typed():
    with pytest.raises(DriverUnavailable, match="NVIDIA"):
        list(api.measure(api.Options()))


@pytest.mark.parametrize("driver", ["host", "cumem-emulated"])
def test_every_operation_is_timed_for_every_extent(driver):
    found = list(api.measure(api.Options(driver=driver, rounds=3)))
    names = {measure.name for measure in found}
    assert len(names) == len(found) == 6 * len(OPERATIONS)
    assert {name.rsplit(",", 1)[0] for name in names} == OPERATIONS
    assert all(measure.value > 0 and measure.rounds == 3 for measure in found)


def test_bandwidth_of_new_and_of_reused_memory():
    options = bandwidth.Options(driver="cumem-emulated", rounds=3, total=16)
    found = {measure.name: measure.value for measure in bandwidth.measure(options)}
    assert list(found) == [
        f"cumem-emulated, {kind}, extents of {size}"
        for size in ("2.00 MiB", "8.00 MiB")
        for kind in ("new memory", "reused memory")
    ]
    assert all(value > 0 for value in found.values())


def test_two_drivers_are_compared_where_both_have_such_extents():
    options = bandwidth.Options(driver="host", against="cumem-emulated", rounds=3, total=16)
    found = {measure.name: measure for measure in bandwidth.measure(options)}
    ratios = [name for name in found if name.startswith("time, host / cumem-emulated")]
    assert len(ratios) == 6  # two sizes; from slabs, new and reused
    assert "host, reused memory, extents of 64.0 KiB" in found
    ours, theirs = (
        found[f"{driver}, reused memory, extents of 8.00 MiB"].value
        for driver in ("host", "cumem-emulated")
    )
    ratio = found["time, host / cumem-emulated, both as reused memory, extents of 8.00 MiB"]
    assert ratio.low <= ratio.value <= ratio.high
    assert (ratio.value > 1) == (ours < theirs) or ratio.low <= 1 <= ratio.high


def test_a_driver_is_not_compared_with_itself():
    with pytest.raises(ConfigError, match="cumem-emulated"):
        list(bandwidth.measure(bandwidth.Options("cumem-emulated", against="cumem-emulated")))


# --- capacity ---


def counts(
    tmp_path: Path, lengths: list[tuple[int, int]], memory: str, **options: str
) -> dict[str, float]:
    trace = tmp_path / "trace.csv"
    rows = "\n".join(f"{prompt},{answer}" for prompt, answer in lengths)
    trace.write_text(f"num_prefill_tokens,num_decode_tokens\n{rows}\n")
    options = capacity.Options(trace=str(trace), memory=memory, rounds=3, **options)
    return {m.name: m.value for m in capacity.measure(options) if m.unit == "requests"}


def test_capacity_counts_whole_requests_of_known_size(tmp_path):
    """1,000 tokens of Llama-3-8B are 125 MiB; a 2M page holds 16 tokens, or 1,024 of an arena."""
    found = counts(tmp_path, [(900, 100)] * 60, "4GiB")
    assert found["static"] == 32  # 4 GiB / 125 MiB is 32.8
    assert found["paged, 16 tokens"] == 32  # 63 blocks of 2 MiB each
    assert found["contiguous, 64K pages, layout layer"] == 32  # 32 pages of 64 KiB an arena
    assert found["contiguous, 2M pages, layout layer"] == 32  # one page in each of 64 arenas
    # 1,192 tokens with the guard: 75 pages side by side, or two in each of 64 arenas.
    assert found["cumem, 2M pages, layout token, flash-attn-3, guard of 192 tokens"] == 27
    assert found["cumem, 2M pages, layout layer, flash-attn-3, guard of 192 tokens"] == 16
    assert found["cumem, 2M pages, layout token, flash-attn-3-paged"] == 32


def test_capacity_of_one_driver_counts_its_pages_and_its_guard(tmp_path):
    found = counts(tmp_path, [(900, 100)] * 60, "4GiB", driver="stock-uvm", page_size="64K")
    ours = {name: value for name, value in found.items() if name.startswith("stock-uvm")}
    # 32 pages of 64 KiB in each of 64 arenas; with the guard 38.
    name = "stock-uvm, 64K pages, layout layer"
    kernels = ("flash-attn-3-paged", "flash-attn-3, guard of 192 tokens")
    assert ours == {f"{name}, {kernels[0]}": 32, f"{name}, {kernels[1]}": 26}
    assert len(found) == 4


def test_static_allocation_pays_for_the_longest_request(tmp_path):
    found = counts(tmp_path, [(7000, 1000)] + [(400, 100)] * 200, "4GiB")
    assert found["static"] == 4
    assert found["paged, 16 tokens"] > 40


def test_a_memory_that_holds_no_two_requests_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="memory='100MiB'"):
        counts(tmp_path, [(900, 100)] * 10, "100MiB")


def test_the_trace_is_walked_round_once(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("num_prefill_tokens,num_decode_tokens\n1,1\n2,2\n3,3\n")
    walked = list(capacity._from(read_trace(trace), 2))
    assert [request.prompt for request in walked] == [3, 1, 2]


# --- what runs beside the kernels ---


@pytest.mark.parametrize("block", [16, 64, 256])
def test_blocks_and_their_table_hold_the_same_tokens(block):
    torch = pytest.importorskip("torch")
    from pyvattn.bench.paged import cut_into_blocks

    k, v = torch.randn(3, 250, 2, 8), torch.randn(3, 250, 2, 8)
    table, [(k_blocks, v_blocks)] = cut_into_blocks(torch, [(k, v)], 200, block)
    assert table.dtype == torch.int32
    assert sorted(table.flatten().tolist()) == list(range(table.numel()))
    for whole, blocks in ((k, k_blocks), (v, v_blocks)):
        assert blocks.shape[1] == block
        for row in range(3):
            tokens = blocks[table[row].long()].flatten(0, 1)[:200]
            assert torch.equal(tokens, whole[row, :200])


def test_the_decoder_of_overlap_attends_to_what_it_appended(monkeypatch):
    """One step at a time over the cache gives what a second cache gives that grew at once."""
    torch = pytest.importorskip("torch")
    from pyvattn import CacheSpec, KVCache
    from pyvattn.bench import decoder

    for name, value in (("_HIDDEN", 64), ("_FEED", 96), ("_VOCABULARY", 50)):
        monkeypatch.setattr(decoder, name, value)
    torch.manual_seed(0)
    weights = decoder.Weights(torch, 2, "cpu")
    spec = CacheSpec(2, 8, 128, dtype="bfloat16", max_slots=3, max_tokens=64)

    def decode(layout: str, backed: int) -> list[list[int]]:
        with KVCache(spec, device="cpu", layout=layout, memory="64MiB") as cache:
            slots = [cache.acquire() for _ in range(3)]
            cache.step(dict.fromkeys(slots, backed))
            run = decoder.Decoder(torch, weights, cache, 3)
            run.slots.copy_(torch.tensor([slot.index for slot in slots]))
            run.tokens.copy_(torch.tensor([1, 2, 3]))
            produced = []
            for length in range(1, 6):
                cache.step(dict.fromkeys(slots, max(backed, length)))
                run.lengths.fill_(length)
                run.launch()
                produced.append(run.tokens.tolist())
            return produced

    grown = decode("layer", 1)
    assert grown == decode("token", 64)
    assert len({tuple(tokens) for tokens in grown}) > 1, "the tokens do not depend on anything"
