# SPDX-License-Identifier: Apache-2.0
"""What result files say of the machine they were measured on."""

from __future__ import annotations

from pyvattn import machine

VERSION = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build
GCC version:  gcc version 13.3.0
"""


def test_gpus_and_their_driver_are_named(tmp_path):
    nvidia = tmp_path / "proc/driver/nvidia"
    for number, model in enumerate(("NVIDIA H200", "NVIDIA L4")):
        folder = nvidia / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 1\n")
    (nvidia / "version").write_text(VERSION)
    described = machine.describe_machine(tmp_path)
    assert described["gpus"] == ["NVIDIA H200", "NVIDIA L4"]
    assert described["nvidia_driver"] == "580.159.04"


def test_a_machine_without_a_gpu_names_none(tmp_path):
    described = machine.describe_machine(tmp_path)
    assert "gpus" not in described
    assert described["cores"] >= 1


def test_the_command_is_what_a_user_types(monkeypatch):
    for program in ("/usr/bin/pyvattn", "/site-packages/pyvattn/__main__.py"):
        monkeypatch.setattr(machine.sys, "argv", [program, "bench", "api"])
        assert machine.describe_run()["command"] == "pyvattn bench api"
