# SPDX-License-Identifier: Apache-2.0
"""Detection on machines that are made of files, with a core that answers as told."""

from typing import ClassVar

import pytest

from pyvattn import CacheSpec, DriverError, DriverUnavailable, _native, cuda
from pyvattn.detect import auto_driver, choose_auto, detect_drivers, read_machine
from pyvattn.detect.core import Offer, ask_core
from pyvattn.detect.devices import describe_cuda
from pyvattn.detect.machine import Machine
from pyvattn.errors import MissingDependency
from pyvattn.probe import probe_page
from pyvattn.resolve import resolve

K, M = 1 << 10, 1 << 20

OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC 12\n"
)
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Mon Jan 1 00:00:00\n"
GPU = Machine("580.159.04", True, ("/dev/nvidia0",), control_node=True, uvm_node=True)


def machine(tmp_path, version="", nodes=()):
    (tmp_path / "dev").mkdir()
    for node in nodes:
        (tmp_path / "dev" / node).touch()
    if version:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text(version)
    return read_machine(tmp_path)


def core(*offered, peers=()):
    sizes = {"patched": (64 * K, 2 * M), "stock-uvm": (64 * K, 2 * M), "cumem": (2 * M,),
             "host": (64 * K,)}  # fmt: skip

    def ask(driver):
        if driver not in offered:
            raise DriverUnavailable(f"the core says no to {driver}")
        return Offer(sizes[driver], peers if driver == "cumem" else ())

    return ask


def reports(found, *offered):
    return {report.name: report for report in detect_drivers(0, found, core(*offered))}


class TestMachine:
    def test_the_open_modules(self, tmp_path):
        found = machine(
            tmp_path, OPEN, ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset"]
        )
        assert found.release == "580.159.04"
        assert found.open_modules
        assert found.gpus == ("/dev/nvidia0", "/dev/nvidia1")
        assert found.no_gpu_reason is None

    def test_the_proprietary_module(self, tmp_path):
        found = machine(tmp_path, PROPRIETARY, ["nvidia0", "nvidiactl", "nvidia-uvm"])
        assert (found.release, found.open_modules) == ("535.261.03", False)

    def test_no_driver(self, tmp_path):
        assert "no NVIDIA kernel driver" in machine(tmp_path).no_gpu_reason

    def test_a_container_without_the_device_nodes(self, tmp_path):
        assert "container" in machine(tmp_path, OPEN).no_gpu_reason


class TestReports:
    def test_every_driver_is_reported_with_a_reason(self):
        for found in (GPU, Machine()):
            for offered in ((), ("patched", "stock-uvm", "cumem", "host")):
                for report in reports(found, *offered).values():
                    assert report.reason
                    assert report.available == bool(report.page_sizes)

    def test_without_a_gpu_only_host_is_left(self):
        found = reports(Machine(), "patched", "stock-uvm", "cumem", "host")
        assert [name for name, report in found.items() if report.available] == ["host"]

    def test_stock_uvm_says_how_to_ask_for_it(self):
        found = reports(GPU, "stock-uvm", "cumem", "host")
        assert "PYVATTN_DRIVER=stock-uvm" in found["stock-uvm"].advice
        assert not found["patched"].available
        assert "no to patched" in found["patched"].reason

    def test_cumem_names_the_gpus_that_a_cache_can_be_opened_to(self):
        found = detect_drivers(0, GPU, core("cumem", "host", peers=(1, 2)))
        advice = {report.name: (report.peers, report.advice) for report in found}
        assert advice["cumem"][0] == (1, 2)
        assert advice["cumem"][1].startswith("cuda:1, cuda:2 can copy straight into a cache")
        assert "peer_access=True" in advice["cumem"][1]
        assert advice["host"] == ((), "")
        assert reports(GPU, "cumem")["cumem"].advice == ""

    def test_what_speaks_against_the_fine_drivers(self):
        no_uvm = Machine("580.159.04", True, ("/dev/nvidia0",), control_node=True)
        assert "/dev/nvidia-uvm" in reports(no_uvm, "stock-uvm")["stock-uvm"].reason
        closed = Machine("535.1", False, ("/dev/nvidia0",), control_node=True, uvm_node=True)
        assert "proprietary" in reports(closed, "patched")["patched"].reason
        wsl = reports(Machine(wsl=True), "cumem", "stock-uvm", "patched")
        assert wsl["cumem"].available
        assert "WSL" in wsl["stock-uvm"].reason

    @pytest.mark.parametrize(
        ("offered", "device", "expected"),
        [
            (("patched", "stock-uvm", "cumem", "host"), "cuda:0", "patched"),
            (("stock-uvm", "cumem", "host"), "cuda:0", "cumem"),
            (("stock-uvm", "host"), "cuda:0", None),
            (("host",), "cpu", "host"),
        ],
    )
    def test_auto_never_takes_stock_uvm_and_never_falls_to_host(self, offered, device, expected):
        found = tuple(reports(GPU, *offered).values())
        assert auto_driver(found, device) == expected


class TestWhatAutoTakes:
    def test_cumem_names_the_finer_drivers_and_how_to_ask_for_them(self):
        choice = choose_auto(tuple(reports(GPU, "stock-uvm", "cumem", "host").values()), "cuda")
        assert choice.driver == "cumem"
        assert "2M" in choice.reason
        assert "PYVATTN_DRIVER=stock-uvm" in choice.improvement
        assert "64K" in choice.improvement
        assert "driver plan" in choice.improvement

    def test_a_stock_uvm_that_is_not_available_is_not_recommended(self):
        choice = choose_auto(tuple(reports(GPU, "cumem", "host").values()), "cuda")
        assert "stock-uvm" not in choice.improvement
        assert "driver plan" in choice.improvement

    def test_nothing_is_better_than_patched_and_nothing_than_host_on_a_cpu(self):
        everything = tuple(reports(GPU, "patched", "stock-uvm", "cumem", "host").values())
        for device, driver in (("cuda", "patched"), ("cpu", "host")):
            choice = choose_auto(everything, device)
            assert (choice.driver, choice.improvement) == (driver, "")

    def test_without_a_gpu_the_reason_is_the_machines_and_the_cpu_is_left(self):
        found = Machine()
        choice = choose_auto(tuple(reports(found, "host").values()), "cuda")
        assert choice.driver is None
        assert choice.reason == found.no_gpu_reason
        assert "device='cpu'" in choice.improvement

    def test_what_the_environment_names_is_what_auto_takes(self, monkeypatch):
        found = tuple(reports(GPU, "stock-uvm", "cumem", "host").values())
        monkeypatch.setenv("PYVATTN_DRIVER", "stock-uvm")
        choice = choose_auto(found, "cuda")
        assert (choice.driver, choice.improvement) == ("stock-uvm", "")
        assert choice.reason.startswith("PYVATTN_DRIVER names it; pages of ")
        assert choose_auto(found, "cpu").driver == "host"
        monkeypatch.setenv("PYVATTN_DRIVER", "patched")
        choice = choose_auto(found, "cuda")
        assert choice.driver is None
        assert choice.reason.startswith("PYVATTN_DRIVER=patched, and ")

    @pytest.mark.parametrize("named", ["", "cumem", "stock-uvm", "patched"])
    @pytest.mark.parametrize("offered", [(), ("cumem",), ("patched", "cumem"), ("stock-uvm",)])
    def test_a_cache_opens_what_info_says(self, monkeypatch, named, offered):
        def capabilities(name, device=0):
            if name not in offered:
                raise DriverUnavailable(f"no {name} here")

        monkeypatch.setattr(_native, "driver_capabilities", capabilities)
        if named:
            monkeypatch.setenv("PYVATTN_DRIVER", named)
        else:
            monkeypatch.delenv("PYVATTN_DRIVER", raising=False)
        said = choose_auto(tuple(reports(GPU, *offered, "host").values()), "cuda").driver
        auto = {"device": "cuda", "driver": "auto", "page_size": "auto", "layout": "auto"}
        try:
            opened = resolve(CacheSpec(32, 8, 128), **auto, layers_per_arena=None).driver
        except DriverUnavailable:
            opened = None
        assert opened == said


class TestCuda:
    class Cuda:
        """cuda-python with two devices, of which the second gives no context."""

        asked: ClassVar[list[int]] = []

        @staticmethod
        def cuda_version():
            return 13, 0

        @staticmethod
        def devices():
            return [cuda.Device(i, "H200", f"GPU-{i}", (9, 0), 140 << 30, 2 * M) for i in (0, 1)]

        @classmethod
        def memory(cls, ordinal):
            cls.asked.append(ordinal)
            if ordinal == 1:
                raise DriverError("cuDevicePrimaryCtxRetain failed")
            return cuda.Memory(100 << 30, 140 << 30)

    @pytest.fixture(autouse=True)
    def _devices(self, monkeypatch):
        self.Cuda.asked.clear()
        for name in ("cuda_version", "devices", "memory"):
            monkeypatch.setattr(cuda, name, getattr(self.Cuda, name))

    def test_a_context_is_made_on_the_device_that_was_asked_about_only(self):
        found = describe_cuda(0)
        assert [device.free_bytes for device in found.devices] == [100 << 30, None]
        assert self.Cuda.asked == [0]
        assert (found.version, found.reason) == ((13, 0), "")

    def test_a_device_without_a_context_is_listed_all_the_same(self):
        assert [device.uuid for device in describe_cuda(1).devices] == ["GPU-0", "GPU-1"]

    def test_what_is_missing_is_a_reason(self, monkeypatch):
        def missing():
            raise MissingDependency("cuda-python is not installed")

        monkeypatch.setattr(cuda, "cuda_version", missing)
        found = describe_cuda(0)
        assert (found.devices, found.version) == ((), None)
        assert "cuda-python" in found.reason


class TestTheCoreItself:
    def test_it_offers_host_pages_from_64k_to_2m(self):
        sizes = ask_core()("host").page_sizes
        assert min(sizes) == 64 * K
        assert max(sizes) == 2 * M

    def test_it_names_a_driver_that_it_lacks(self):
        with pytest.raises(DriverUnavailable, match="no nonesuch driver"):
            ask_core()("nonesuch")

    def test_a_probe_of_every_host_page_succeeds(self):
        for size in ask_core()("host").page_sizes:
            assert probe_page("host", size).ok

    def test_a_probe_of_what_is_not_there_says_why(self):
        probe = probe_page("host", 96 * K)
        assert not probe.ok
        assert "ConfigError" in probe.failure
