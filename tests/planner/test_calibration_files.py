# SPDX-License-Identifier: Apache-2.0
"""A calibration that is in the way of nothing: whatever lies where one is looked for."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from pyvattn import CacheSpec, KVCache, PlanWarning
from pyvattn.calibrate import write_calibration
from pyvattn.errors import CalibrationError
from pyvattn.planner import default_costs, read_calibration, use_calibration
from pyvattn.planner.calibration import VARIABLE, default_path

SPEC = CacheSpec(1, 1, 64, max_slots=2, max_tokens=64)


@pytest.fixture(autouse=True)
def _own_config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(VARIABLE, raising=False)


def content(cost=1.0, source="a test"):
    return {"version": 1, "source": source, "drivers": {"host": {"map_us": {"65536": cost}}}}


def deep(path):
    path.write_text("[" * 100_000)


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def large(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


def folder(path):
    path.mkdir()


def no_text(path):
    path.write_bytes(b"\xff\xfe{}")


def huge_number(path):
    path.write_text(json.dumps(content(10**400)))


def loop(path):
    path.symlink_to(path)


def foreign(path):
    path.write_text(json.dumps(content()))
    path.parent.chmod(0)


KINDS = [deep, pipe, endless, large, folder, no_text, huge_number, loop, foreign]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def broken(request):
    """Something unusable where the user's own calibration would be."""
    if request.param is foreign and os.geteuid() == 0:
        pytest.skip("root may read every file")
    default_path().parent.mkdir(parents=True)
    request.param(default_path())
    yield default_path()
    default_path().parent.chmod(0o700)


def test_it_is_left_out_with_the_reason(broken):
    costs = use_calibration("host")
    assert costs.map_us == default_costs("host").map_us
    assert str(broken) in costs.ignored
    assert costs.ignored.isprintable()


def test_a_cache_opens_beside_it(broken):
    KVCache(SPEC, device="cpu", memory="1MiB").close()


def test_read_by_name_it_is_refused(broken):
    with pytest.raises(CalibrationError, match="calibration"):
        read_calibration(broken)


def test_a_cache_opens_without_one_that_the_environment_names_and_says_so(broken, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(broken))
    with pytest.warns(PlanWarning, match="planned without it: .*calibration"):
        KVCache(SPEC, device="cpu", memory="1MiB").close()


def test_a_user_without_a_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr("pathlib.Path.home", no_home)
    KVCache(SPEC, device="cpu", memory="1MiB").close()
    assert "set HOME" in use_calibration("host").ignored
    with pytest.raises(CalibrationError, match="set HOME or XDG_CONFIG_HOME"):
        default_path()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("home", ["no entry", "of root"])
def test_a_cache_opens_for_a_user_whose_home_is_not_theirs(home, tmp_path):
    """As containers start processes: a uid without an entry in passwd, HOME of another."""
    program = f"""
import os, sys, pyvattn.cache, pyvattn.planner
os.environ.pop("XDG_CONFIG_HOME", None)
os.environ.pop("HOME", None)
if {home!r} == "of root":
    os.environ["HOME"] = {str(tmp_path)!r}
os.chmod({str(tmp_path)!r}, 0o700)
os.setuid(54321)
spec = pyvattn.CacheSpec(1, 1, 64, max_slots=2, max_tokens=64)
pyvattn.KVCache(spec, device="cpu", memory="1MiB").close()
print(pyvattn.planner.use_calibration("host").ignored)
"""
    environment = {k: v for k, v in os.environ.items() if k not in (VARIABLE, "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "calibration" in done.stdout


def test_what_a_file_says_reaches_the_terminal_as_text(tmp_path):
    path = write_calibration(
        {
            **content(source="\x1b]0;owned\x07\x1b[2Jmy\nmachine \ud800"),
            "made_on": {"cpu": "\x1b[31mred"},
        },
        tmp_path / "\x1b[1mbold.json",
    )
    found = use_calibration("host", path=path)
    assert found.source.isprintable()
    assert r"\x1b[2Jmy\nmachine \ud800" in found.source
    assert read_calibration(path).made_on.cpu == r"\x1b[31mred"
    path.write_text('{"\x1b[31m')
    with pytest.raises(CalibrationError) as caught:
        read_calibration(path)
    assert str(caught.value).isprintable()


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    assert use_calibration("host") == default_costs("host")


def test_where_it_cannot_be_written_the_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match=r"file/c\.json.*--out"):
        write_calibration(content(), tmp_path / "file" / "c.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CalibrationError, match=r"folder.*--out"):
        write_calibration(content(), tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def _write(path, writer, ready):
    ready.wait()
    for i in range(100):
        # Files of different lengths: a mixture of two would not parse.
        write_calibration({**content(1.0 + writer), "filling": "x" * 999 * writer * (i % 7)}, path)


def test_any_number_of_processes_may_write_and_read(tmp_path):
    path = tmp_path / "c.json"
    write_calibration(content(), path)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    writers = [context.Process(target=_write, args=(path, n, ready)) for n in range(4)]
    for writer in writers:
        writer.start()
    ready.set()
    reads = 0
    while any(writer.is_alive() for writer in writers) or reads == 0:
        assert read_calibration(path).costs("host").call_us(65536) in (1.0, 2.0, 3.0, 4.0)
        reads += 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["c.json"]
