# SPDX-License-Identifier: Apache-2.0
"""What a profiler sees with PYVATTN_NVTX, by a library in place of NVTX that writes it down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict

import pytest

from pyvattn import ConfigError, KVCache, MissingDependency, _native, nvtx

RECORDER = r"""
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int note(const char* what) {
  char line[128];
  int size = snprintf(line, sizeof line, "%lu %s\n", (unsigned long)pthread_self(), what);
  int file = open(getenv("RECORD"), O_WRONLY | O_APPEND | O_CREAT, 0600);
  size = write(file, line, size);
  close(file);
  return size;
}
int nvtxRangePushA(const char* name) { return note(name); }
int nvtxRangePop(void) { return note("-"); }
"""

USE = """
import torch
from pyvattn import BlockPool, CacheSpec, KVCache, RowMap
from pyvattn.attention import append, attend

spec = CacheSpec(1, 2, 64, "float32", max_slots=3, max_tokens=4096)
pages = {"device": "cpu", "page_size": "64K", "memory": "8MiB"}
with KVCache(spec, read_ahead=0, **pages) as cache:
    slot = cache.admit(100)
    cache.prefetch({slot: 2000})
    cache.drain()
    new = torch.ones(1, 2, 64)
    append(cache, 0, torch.tensor([slot.index]), torch.tensor([99]), new, new)
    attend(torch.ones(1, 1, 2, 64), cache, 0, [slot.index], [100])
    cache.step({slot: 200})
    twin = cache.fork(slot)
    kept = cache.offload(slot)
    cache.release(twin)
    cache.release(slot)
    cache.restore(kept)
    cache.drain()
with BlockPool(spec, **pages) as pool:
    rows = RowMap(pool)
    rows.open(pool.allocate(1))
    rows.flush()
"""


@pytest.fixture
def recorder(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for NVTX with")
    source, library = tmp_path / "recorder.c", tmp_path / "librecorder.so"
    source.write_text(RECORDER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def ranges(path):
    """Return the names of the ranges of each thread, the first that was seen first.

    With what each lay in: ``step/map``. Fails where one is not closed.
    """
    open_ones, found = defaultdict(list), defaultdict(list)
    for line in path.read_text().splitlines():
        thread, what = line.split(" ")
        if what == "-":
            open_ones[thread].pop()
        else:
            open_ones[thread].append(what.removeprefix("pyvattn."))
            found[thread].append("/".join(open_ones[thread]))
    assert not any(open_ones.values())
    return list(found.values())


def test_calls_and_what_the_driver_does_are_ranges_of_their_threads(recorder, tmp_path):
    pytest.importorskip("torch", reason="append() and offload() work on tensors of torch")
    record = tmp_path / "record"
    done = run(USE, PYVATTN_NVTX=str(recorder), RECORD=str(record))
    assert done.returncode == 0, done.stderr
    caller, *others = ranges(record)
    assert {
        "admit",
        "admit/map",
        "append",
        "attend",
        "step",
        "fork",
        "copy_out",
        "restore",
        "restore/copy_in",
        "flush/map",
    } <= set(caller)
    # The mapper thread's own work, and what closing gives back, wherever that runs.
    assert "map" in {name for other in others for name in other}
    everywhere = {name.rpartition("/")[2] for names in (caller, *others) for name in names}
    assert {"unmap", "zero"} <= everywhere


@pytest.mark.skipif("PYVATTN_NVTX" in os.environ, reason="PYVATTN_NVTX is set here")
def test_without_the_variable_nothing_is_wrapped():
    assert not hasattr(KVCache.step, "__wrapped__")
    driver = _native.make_driver("host", 65536)
    assert nvtx.ranged_driver(driver) is driver

    def call():
        """Do nothing."""

    assert nvtx.ranged("pyvattn.call")(call) is call


@pytest.mark.parametrize("library", ["/no/such/library.so", "libc.so.6"])
def test_a_library_that_is_none_of_nvtx_is_refused_when_a_cache_is_opened(library):
    with pytest.raises(ConfigError, match=f"no NVTX in {library}: "):
        _native.RangesAdaptor(_native.make_driver("host", 65536), library)
    code = (
        "from pyvattn import CacheSpec, ConfigError, KVCache\n"
        "try:\n"
        "    KVCache(CacheSpec(1, 1, 8, 'float32', max_slots=1, max_tokens=8),"
        " device='cpu', memory='1MiB')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = run(code, PYVATTN_NVTX=library)
    assert f"no NVTX in {library}: " in done.stdout, done.stderr


@pytest.fixture
def looked_up(monkeypatch, tmp_path):
    """Look the library up among packages in a folder, and names that no system has."""
    monkeypatch.setattr(nvtx, "_ASKED", "1")
    monkeypatch.setattr(nvtx, "_NAMES", ("libnvtx-of-a-test.so", "libother-of-a-test.so"))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return nvtx._path.__wrapped__


def test_the_library_of_an_installed_package_is_found(looked_up, tmp_path):
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libother-of-a-test.so").touch()
    assert looked_up() == str(folder / "libother-of-a-test.so")


def test_without_any_library_the_error_says_how_to_get_one(looked_up):
    with pytest.raises(MissingDependency, match=r"libnvtx-of-a-test\.so or .* nvidia-nvtx"):
        looked_up()
