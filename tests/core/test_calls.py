# SPDX-License-Identifier: Apache-2.0
"""Driver calls are kept with their failures, and a file of them is made again as it was."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from pyvattn import CacheSpec, DriverError, KVCache, TraceError, _native
from pyvattn.calls import open_traced, read_calls, replay_calls, write_calls
from pyvattn.cli.app import cli

SPEC = CacheSpec(2, 2, 16, "float32", max_slots=4, max_tokens=4096)
K = 1 << 10


@pytest.fixture
def driver():
    return open_traced("host", "64K")


@pytest.fixture
def recorded(driver, tmp_path):
    """A file with the calls of a cache that was used and closed."""
    with KVCache.on_driver(SPEC, driver, layout="layer", memory="2MiB", background=False) as cache:
        slot = cache.admit(1000)
        twin = cache.fork(slot)
        cache.step({slot: 2000})
        cache.release(slot)
        cache.release(twin)
        cache.release(cache.admit(4000 // 2))
    path = tmp_path / "calls.jsonl"
    write_calls(path, driver)
    return path


def rewrite(path, change):
    """Have ``change`` alter the lines of a file, as dictionaries."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_file_has_every_call_and_entry(driver, recorded):
    trace = read_calls(recorded)
    records = driver.records()
    assert (trace.driver, trace.page_size, trace.missing) == ("host", 64 * K, 0)
    assert [(each.call, each.operation, each.address, each.offset) for each in trace.entries] == [
        (each.call, each.operation, each.address, each.offset) for each in records
    ]


def test_what_was_recorded_is_what_is_made_again(driver, recorded):
    """The second time on a driver that records as well."""
    counted = {count.operation: count for count in replay_calls(read_calls(recorded))}
    records = driver.records()
    for operation, count in counted.items():
        mine = [each for each in records if each.operation == operation]
        assert count.entries == len(mine)
        assert count.calls == len({each.call for each in mine})
        assert count.bytes == sum(each.length for each in mine)
        assert count.failed == 0
    assert set(counted) == {each.operation for each in records}
    assert {"reserve", "map", "unmap", "zero", "free_slab", "release_reservation"} <= set(counted)


def test_a_batch_is_one_call(driver):
    address = driver.reserve(256 * K, 64 * K)
    slab = driver.allocate_slab(128 * K)
    batch = [_native.MapEntry(address + at * 64 * K, 64 * K, slab, at * 64 * K) for at in range(2)]
    driver.map(batch)
    driver.unmap(batch)
    calls = [(each.operation, each.call) for each in driver.records()]
    assert calls == [
        ("reserve", 0), ("allocate_slab", 1), ("map", 2), ("map", 2), ("unmap", 3), ("unmap", 3)
    ]  # fmt: skip
    assert driver.records()[0].offset == 64 * K  # the alignment


def test_failures_are_kept_with_what_they_said_and_not_made_again(tmp_path):
    faults = _native.FaultAdaptor(_native.make_driver("host", 64 * K))
    driver = _native.TraceAdaptor(faults)
    with KVCache.on_driver(SPEC, driver, layout="layer", memory="4MiB", background=False) as cache:
        cache.release(cache.admit(100))
        faults.fail_nth(0)
        with pytest.raises(DriverError, match="injected"):
            cache.admit(3000)
        cache.release(cache.admit(3000))
    write_calls(tmp_path / "calls.jsonl", driver)
    trace = read_calls(tmp_path / "calls.jsonl")
    assert any(each.failure for each in trace.entries)
    counts = replay_calls(trace, "host-accounting")
    assert sum(count.failed for count in counts) == 1
    (failed,) = (count for count in counts if count.failed)
    assert "injected" in failed.last_failure


def test_too_small_a_capacity_is_said_and_nothing_is_made(tmp_path):
    driver = open_traced("host", "64K", capacity=5)
    KVCache.on_driver(SPEC, driver, layout="layer", memory="4MiB").close()
    write_calls(tmp_path / "calls.jsonl", driver)
    trace = read_calls(tmp_path / "calls.jsonl")
    assert trace.missing == 3
    with pytest.raises(TraceError, match=r"first 3 entries.*larger capacity"):
        replay_calls(trace)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines.clear(), "first line"),
        (lambda lines: lines[0].update(calls=2), "first line"),
        (lambda lines: lines[0].update(page_size=3), "page size 3"),
        (lambda lines: lines[0].pop("driver"), "driver"),
        (lambda lines: lines[2].update(address=-1), "line 3: address=-1"),
        (lambda lines: lines[2].update(length=True), "line 3: length=True"),
        (lambda lines: lines[2].update(operation="__init__"), "line 3: operation"),
        (lambda lines: lines[2].pop("slab"), "slab"),
        (lambda lines: lines.insert(3, [1]), "line 4"),
    ],
)
def test_a_file_that_holds_no_calls_is_refused_by_line(recorded, change, says):
    rewrite(recorded, change)
    with pytest.raises(TraceError, match=says):
        read_calls(recorded)


def first(lines, operation):
    return next(line for line in lines[1:] if line["operation"] == operation)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines.remove(first(lines, "allocate_slab")), "never allocated"),
        (lambda lines: lines.remove(first(lines, "reserve")), "nothing that was reserved"),
        (lambda lines: first(lines, "reserve").update(offset=3), "alignment of 3"),
        (lambda lines: first(lines, "map").update(length=3), "not aligned"),
        (lambda lines: first(lines, "map").update(offset=1 << 40), "slab"),
        (lambda lines: first(lines, "free_slab").update(call=10**6, slab=77), "slab 77"),
    ],
)
def test_calls_that_do_not_follow_from_each_other_are_refused(recorded, change, says):
    rewrite(recorded, change)
    # The first entry may be gone: what is missing then is for another test.
    rewrite(recorded, lambda lines: lines[1].update(sequence=0))
    with pytest.raises(TraceError, match=says):
        replay_calls(read_calls(recorded))


def test_no_memory_is_left_behind_by_a_trace_that_ends_early(recorded):
    def cut(lines):
        del lines[lines.index(first(lines, "map")) + 1 :]

    rewrite(recorded, cut)
    counts = replay_calls(read_calls(recorded))
    assert counts[-1].operation == "map"
    with open("/proc/self/maps") as maps:
        mapped = sum("memfd" in line for line in maps)
    replay_calls(read_calls(recorded))
    with open("/proc/self/maps") as maps:
        assert sum("memfd" in line for line in maps) <= mapped


def test_the_command_shows_them(recorded):
    shown = CliRunner().invoke(cli, ["replay", "--calls", str(recorded)])
    assert shown.exit_code == 0, shown.output
    assert "Calls of host, pages of 64K, made again on host." in shown.output
    assert "release_reservation" in shown.output
    done = CliRunner().invoke(
        cli, ["replay", "--calls", str(recorded), "--on", "host-accounting", "--json"]
    )
    assert json.loads(done.stdout)["driver"] == "host-accounting"
    both = CliRunner().invoke(cli, ["replay", str(recorded), "--calls", str(recorded)])
    assert both.exit_code == 2
