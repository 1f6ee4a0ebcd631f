# SPDX-License-Identifier: Apache-2.0
"""Which releases of vLLM the plug-in knows."""

from __future__ import annotations

import os

from pyvattn.errors import UnsupportedError

__all__ = ["check_version"]

KNOWN = ("0.26", "0.32")
INSIST = "PYVATTN_VLLM_ANY"


def check_version(version: str) -> None:
    """Raise :class:`~pyvattn.errors.UnsupportedError` for a release that was not tried.

    What the plug-in relies on is no public interface of vLLM: see docs/vllm.md.
    """
    series = ".".join(version.split(".")[:2])
    if series not in KNOWN and os.environ.get(INSIST) != "1":
        raise UnsupportedError(
            f"vLLM {version} was not tried with pyvattn, only {' and '.join(KNOWN)}: install one "
            f"of these, or set {INSIST}=1 to try"
        )
