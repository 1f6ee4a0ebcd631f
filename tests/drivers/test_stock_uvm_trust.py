# SPDX-License-Identifier: Apache-2.0
"""Whether `stock-uvm` may be used: releases, refusals, the self-test."""

from __future__ import annotations

import pytest
from nvidia_machine import GPU_IS_LOST, KB, MAP, NOTHING, Space, held, start

from pyvattn import _native
from pyvattn.errors import DriverError, DriverUnavailable

emulated_cuda, emulated_nvidia = _native.emulated_cuda, _native.emulated_nvidia

NAME = "stock-uvm-emulated"
PAGE = 64 * KB
LAYOUTS = _native.driver_layouts()


@pytest.fixture(autouse=True)
def _machine():
    start()
    yield
    assert emulated_cuda.violations() == []


@pytest.mark.parametrize("release", [r for _, releases in LAYOUTS for r in releases[:1]])
def test_pages_are_mapped_with_the_layout_of_each_release(release):
    start(release=release)
    space = Space(NAME, PAGE)
    space.driver.map([space.entry(3, pages=2, memory=40)])
    space.write(3, b"tokens")
    assert space.read(3).startswith(b"tokens")
    space.driver.unmap([space.entry(3, pages=2, memory=40)])
    space.give_back()
    assert held() == NOTHING


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"release": "580.142", "missing_nodes": ["/dev/nvidia-uvm"]}, "/dev/nvidia-uvm is miss"),
        ({"missing_nodes": ["/dev/nvidiactl"]}, "/dev/nvidiactl is missing"),
        ({"wsl": True}, "WSL"),
        ({"mig": True}, "MIG"),
        ({"vgpu": True}, "vGPU"),
        ({"confidential": True}, "confidential computing"),
        ({"nvml": False}, "libnvidia-ml"),
    ],
)
def test_a_machine_that_cannot_be_trusted_is_refused_with_the_reason(settings, reason):
    start(**settings)
    with pytest.raises(DriverUnavailable, match=reason) as caught:
        _native.driver_capabilities(NAME)
    assert "cumem" in str(caught.value)
    with pytest.raises(DriverUnavailable, match=reason):
        _native.make_driver(NAME, PAGE)
    assert held() == NOTHING


def test_an_unknown_release_is_refused_by_name():
    settings = emulated_nvidia.Settings()
    settings.release = "580.999.01"
    emulated_nvidia.reset(settings)
    with pytest.raises(DriverUnavailable, match=r"580\.999\.01.*cumem"):
        _native.driver_capabilities(NAME)


@pytest.mark.parametrize("node", ["/dev/nvidiactl", "/dev/nvidia3"])
def test_a_node_without_permission_is_refused_by_name(node):
    start(forbidden_nodes=[node])
    with pytest.raises(DriverUnavailable, match=f"{node} cannot be opened: EACCES.*cumem"):
        _native.make_driver(NAME, PAGE)
    assert held() == NOTHING


@pytest.mark.parametrize("speaks", range(len(LAYOUTS)))
@pytest.mark.parametrize("says", range(len(LAYOUTS)))
def test_a_machine_that_speaks_another_layout_than_it_says_is_never_used_wrongly(says, speaks):
    """Only layouts that agree in every field that is used may be taken for each other."""
    used = {name for name in LAYOUTS[0][0] if name not in ("max_gpus", "rm_alloc_access_bytes")}
    same = all(LAYOUTS[says][0][name] == LAYOUTS[speaks][0][name] for name in used)
    start(release=LAYOUTS[speaks][1][0])
    settings = emulated_nvidia.Settings()
    settings.release, settings.layout_of = LAYOUTS[says][1][0], LAYOUTS[speaks][1][0]
    emulated_nvidia.reset(settings)
    if same or {says, speaks} == {1, 2}:
        # Release 545 only added a field at the end of the memory parameters.
        _native.make_driver(NAME, PAGE)
    else:
        with pytest.raises((DriverUnavailable, DriverError)):
            _native.make_driver(NAME, PAGE)
    assert held() == NOTHING


@pytest.mark.parametrize(
    ("sabotage", "step"),
    [
        (lambda: emulated_cuda.fail("cuMemcpyHtoDAsync", 1, 0), "does not keep"),
        (lambda: emulated_cuda.fail("cuMemcpyDtoHAsync", 1, 0), "fresh page"),
        (lambda: emulated_cuda.fail("cuMemcpyDtoHAsync", 3, 0), "second mapping"),
        (lambda: emulated_cuda.fail("cuMemcpyDtoHAsync", 7, 0), "can still be read"),
        (lambda: emulated_nvidia.fail(MAP, 12, GPU_IS_LOST), "NV_ERR_GPU_IS_LOST"),
    ],
)
def test_a_failing_self_test_refuses_and_leaves_nothing(sabotage, step):
    sabotage()
    with pytest.raises(DriverUnavailable, match=f"self-test.*{step}.*cumem"):
        _native.make_driver(NAME, PAGE)
    assert held() == NOTHING


def test_memory_that_does_not_come_back_fails_the_self_test():
    start(frees_lost=1 << 20)
    with pytest.raises(DriverUnavailable, match=r"self-test.*does not come back"):
        _native.make_driver(NAME, PAGE)


def test_what_others_take_for_a_while_does_not_fail_the_self_test():
    start(frees_lost=6)
    assert _native.make_driver(NAME, PAGE) is not None


def test_auto_never_chooses_it(monkeypatch):
    import pyvattn

    monkeypatch.delenv("PYVATTN_DRIVER", raising=False)
    spec = pyvattn.CacheSpec(layers=1, kv_heads=1, head_dim=64, max_slots=1, max_tokens=64)
    cache = pyvattn.KVCache(spec, device="cpu", memory="64MiB")
    assert cache.driver == "host"
    cache.close()
