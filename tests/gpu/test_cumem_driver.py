# SPDX-License-Identifier: Apache-2.0
"""The `cumem` driver on a GPU: the conformance suite that every driver passes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

import conformance
import mapped_space

PAGE = 2 << 20


class DeviceSpace(mapped_space.Space):
    """Reaches the memory through torch copies: the CPU cannot touch it."""

    def write(self, place, data):
        self._bytes(place, len(data)).copy_(_tensor(data))

    def write_from(self, peer, place, data):
        """Write from the peer: the first half by one copy, the rest by its kernels."""
        target, source = self._bytes(place, len(data)), _tensor(data).to(f"cuda:{peer}")
        half = len(data) // 2
        target[:half].copy_(source[:half])
        for parity in (0, 1):
            target[half + parity :: 2].copy_(source[half + parity :: 2])

    def read(self, place, size=64):
        return bytes(self._bytes(place, size).cpu().tolist())

    def _bytes(self, place, size):
        import torch

        memory = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (self.address(place), False),
            "version": 3,
        }
        device = f"cuda:{self.driver.capabilities.dlpack_device[1]}"
        found = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=memory), device=device)
        assert found.data_ptr() == self.address(place), "torch copied: it lies on another device"
        return found


def _tensor(data):
    import torch

    return torch.tensor(list(data), dtype=torch.uint8)


class TestCuMem(conformance.DriverConformance):
    name = "cumem"

    @pytest.fixture
    def space(self, driver, page):
        space = DeviceSpace(driver, page)
        yield space
        space.give_back()

    def test_the_driver_itself_rolls_a_bad_batch_back(self, page, monkeypatch):
        monkeypatch.setattr(conformance, "Space", DeviceSpace)
        super().test_the_driver_itself_rolls_a_bad_batch_back(page)


def test_pages_are_two_mebibytes():
    from pyvattn import _native

    assert _native.driver_capabilities("cumem", 0).page_sizes == [PAGE]


def test_cuda_python_and_the_core_agree_on_the_device():
    pytest.importorskip("cuda.bindings.driver")
    import torch

    from pyvattn import _native, cuda

    device = cuda.devices()[0]
    assert device.granularity == _native.driver_capabilities("cumem", 0).page_sizes[0]
    assert device.name == torch.cuda.get_device_name(0)
    assert device.compute_capability == torch.cuda.get_device_capability(0)
    assert device.uuid == f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    free, total = torch.cuda.mem_get_info(0)
    assert cuda.memory(0).total == total
    assert abs(cuda.memory(0).free - free) < total // 10
