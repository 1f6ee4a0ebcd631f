# SPDX-License-Identifier: Apache-2.0
"""From what a user writes to what is opened, on machines that have what this one lacks."""

from __future__ import annotations

import warnings

import pytest

from pyvattn import CacheSpec, KVCache, PlanWarning, _native, auto
from pyvattn.errors import ConfigError, DriverUnavailable
from pyvattn.planner import plan
from pyvattn.resolve import resolve

SPEC = CacheSpec(32, 8, 128)
SMALL = CacheSpec(1, 1, 64, max_slots=2, max_tokens=64)
AUTO = {
    "device": "cuda",
    "driver": "auto",
    "page_size": "auto",
    "layout": "auto",
    "layers_per_arena": None,
}


@pytest.fixture
def machine(monkeypatch):
    """A machine that offers the drivers named."""
    monkeypatch.delenv("PYVATTN_DRIVER", raising=False)

    def offering(*names):
        def capabilities(name, device=0):
            if name not in names:
                raise DriverUnavailable(f"no {name} here")

        monkeypatch.setattr(_native, "driver_capabilities", capabilities)

    return offering


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("cumem",), "cumem"), (("cumem", "stock-uvm"), "cumem"), (("patched", "cumem"), "patched")],
)
def test_auto_on_a_gpu(machine, offered, chosen):
    machine(*offered)
    assert resolve(SPEC, **AUTO).driver == chosen


def test_auto_never_falls_from_a_gpu_to_the_host(machine):
    machine("host")
    with pytest.raises(DriverUnavailable, match="no cumem here"):
        resolve(SPEC, **AUTO)


def test_the_environment_chooses_for_auto_only(machine, monkeypatch):
    machine("cumem", "stock-uvm")
    monkeypatch.setenv("PYVATTN_DRIVER", "stock-uvm")
    assert resolve(SPEC, **AUTO).driver == "stock-uvm"
    assert resolve(SPEC, **{**AUTO, "driver": "cumem"}).driver == "cumem"
    monkeypatch.setenv("PYVATTN_DRIVER", "stok-uvm")
    with pytest.raises(ConfigError, match="stok-uvm"):
        resolve(SPEC, **AUTO)


def test_the_environment_chooses_where_its_driver_serves(monkeypatch):
    for name in ("patched", "cumem", "stock-uvm", ""):
        monkeypatch.setenv("PYVATTN_DRIVER", name)
        with KVCache(SMALL, device="cpu", memory="1MiB") as cache:
            assert cache.driver == "host"
    monkeypatch.setenv("PYVATTN_DRIVER", "cumem-emulated")
    with KVCache(SMALL, device="cpu", memory="16MiB") as cache:
        assert cache.driver == "cumem-emulated"


def test_the_environments_driver_of_the_host_does_not_keep_a_gpu_from_its_own(machine, monkeypatch):
    machine("cumem")
    monkeypatch.setenv("PYVATTN_DRIVER", "host")
    assert resolve(SPEC, **AUTO).driver == "cumem"


def test_a_slow_choice_by_name_warns_and_is_kept(machine):
    machine("cumem", "stock-uvm")
    slow = {**AUTO, "driver": "stock-uvm", "page_size": "64K", "layout": "token"}
    with pytest.warns(PlanWarning, match="64K"):
        found = resolve(SPEC, **slow)
    assert (found.geometries[0].page_size, found.geometries[0].layout) == (64 << 10, "token")


def test_rows_grow_by_what_the_planner_would_map_at_a_time(machine):
    machine("cumem", "stock-uvm")
    fine = {**AUTO, "driver": "stock-uvm", "page_size": "64K", "layout": "layer"}
    found = resolve(SPEC, **fine).read_ahead
    planned = plan(SPEC, driver="stock-uvm", page_size="64K", layout="layer").choice
    assert found == planned.read_ahead_tokens > 0
    assert resolve(SPEC, **AUTO).read_ahead == 0


def test_what_the_planner_chooses_does_not_warn(machine):
    machine("cumem", "stock-uvm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(SPEC, **AUTO)


class TestPatchedThatDoesNotServeThisGpu:
    """The module answers the query, and lists no page size once it is asked about the GPU."""

    @pytest.fixture(autouse=True)
    def _emulated(self, monkeypatch):
        from pyvattn import resolve as module

        monkeypatch.delenv("PYVATTN_DRIVER", raising=False)
        monkeypatch.setattr(auto, "ON_CUDA", ("patched-emulated", "cumem-emulated"))
        monkeypatch.setattr(module, "_PREFERRED", "patched-emulated")
        monkeypatch.setattr(module, "_FALLBACK", "cumem-emulated")
        monkeypatch.setattr(module, "_needs_cuda", lambda _name: True)
        settings = _native.emulated_nvidia.Settings()
        settings.confidential = True
        _native.emulated_nvidia.reset(settings)
        yield
        _native.emulated_nvidia.reset(_native.emulated_nvidia.Settings())

    def test_auto_takes_cumem_and_says_why(self):
        with (
            pytest.warns(PlanWarning, match=r"takes cumem.*not work on this GPU"),
            KVCache(SMALL, device="cuda", memory="64MiB") as cache,
        ):
            assert cache.driver == "cumem-emulated"

    def test_by_name_it_is_refused(self, monkeypatch):
        with pytest.raises(DriverUnavailable, match="not work on this GPU"):
            KVCache(SMALL, device="cuda", driver="patched-emulated", memory="64MiB")
        monkeypatch.setenv("PYVATTN_DRIVER", "patched-emulated")
        with pytest.raises(DriverUnavailable, match="not work on this GPU"):
            KVCache(SMALL, device="cuda", memory="64MiB")
