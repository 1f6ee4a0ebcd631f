# SPDX-License-Identifier: Apache-2.0
"""The list of kernels says without an import what the adapters say with one."""

from __future__ import annotations

import sys

import pytest

from pyvattn.kernels import NO_DEVICE, kernel_named, survey, why_not_capable


def test_the_registry_holds_the_list_in_its_order():
    pytest.importorskip("torch")
    from pyvattn.attention import kernel_infos

    listed = [(info.name, info.supports, info.guard_tokens) for info in survey(None)]
    assert [(info.name, info.supports, info.guard_tokens) for info in kernel_infos()] == listed


def test_both_agree_on_what_this_machine_lacks():
    torch = pytest.importorskip("torch")
    from pyvattn.attention import kernel_infos

    device = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    assert {i.name: i.unavailable for i in survey(device)} == {
        i.name: i.unavailable for i in kernel_infos()
    }


@pytest.mark.parametrize(
    ("kernel", "capability", "reason"),
    [
        ("flash-attn-3", (9, 0), None),
        ("flash-attn-3", (10, 0), "needs compute capability 9.0 to 9.0, the device has 10.0"),
        ("flash-attn-2", (7, 5), "needs compute capability 8.0 or later, the device has 7.5"),
        ("flash-attn-2", (12, 0), None),
        ("sdpa-cudnn", (7, 5), None),
        ("sdpa-cudnn", None, NO_DEVICE),
        ("sdpa", None, None),
    ],
)
def test_a_device_too_old_or_too_new_is_named(kernel, capability, reason):
    assert why_not_capable(kernel_named(kernel), capability) == reason


def test_a_package_is_found_without_running_it(monkeypatch, tmp_path):
    """FlashAttention-4 lies in a folder `flash_attn`, and FlashAttention-2 is then not there."""
    for module in ("flash_attn/cute/__init__.py", "flash_attn_interface.py"):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    why = {info.name: info.unavailable for info in survey((9, 0))}
    assert why["flash-attn-4"] is None
    assert why["flash-attn-3"] is None
    assert "pip install flash-attn" in why["flash-attn-2"]
    assert not {"flash_attn", "flash_attn_interface"} & set(sys.modules)


def test_a_reason_for_the_missing_device_is_passed_on():
    assert why_not_capable(kernel_named("flashinfer"), None, "nobody asked") == "nobody asked"
