# SPDX-License-Identifier: Apache-2.0
"""The table of docs/attention.md is what the kernels say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

PAGE = Path(__file__).parents[2] / "docs" / "attention.md"


def table() -> str:
    from pyvattn.attention import Feature
    from pyvattn.attention.registry import _KERNELS
    from pyvattn.kernels import KERNELS

    names = [feature.value for feature in Feature]
    lines = [f"| kernel | {' | '.join(names)} |", f"| --- {'| --- ' * len(names)}|"]
    for name in (kernel.name for kernel in KERNELS):
        marks = ["yes" if feature in _KERNELS[name].features else "" for feature in Feature]
        lines.append(f"| `{name}` | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def test_the_page_lists_what_each_kernel_does():
    text = PAGE.read_text()
    listed = text.split("<!-- kernels: features -->\n")[1].split("<!-- end of kernels -->")[0]
    assert listed == table()
