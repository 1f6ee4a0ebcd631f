# SPDX-License-Identifier: Apache-2.0
"""What a build of FlashAttention-3 was made without.

Its setup.py leaves out what FLASH_ATTENTION_DISABLE_… names. Builds since July 2025 bring a
module that says so; an older one is taken to have everything.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import torch

from pyvattn.attention.features import Feature, named
from pyvattn.attention.problem import Problem

_PREFIX = "FLASHATTENTION_DISABLE_"
_FEATURES = {"SOFTCAP": Feature.SOFTCAP, "LOCAL": Feature.WINDOW}
_HEAD_DIMS = (64, 96, 128, 192, 256)


@cache
def left_out() -> frozenset[str]:
    """Return what the build was made without, by the names of its setup.py: SOFTCAP, HDIM96 …"""
    try:
        flags = import_module("flash_attn_config").CONFIG["build_flags"]
    except (ImportError, AttributeError, KeyError):
        return frozenset()
    return frozenset(name.removeprefix(_PREFIX) for name, is_out in flags.items() if is_out)


def features_left_out() -> frozenset[Feature]:
    """Return the features that the build was made without."""
    return frozenset(feature for name, feature in _FEATURES.items() if name in left_out())


def why_not_built() -> str | None:
    """Say what the build lacks that every row of a cache needs, or return ``None``."""
    if "VARLEN" in left_out():
        return (
            "flash_attn_interface was built without lengths of rows: build it without "
            "FLASH_ATTENTION_DISABLE_VARLEN"
        )
    return None


def why_not_paged() -> str | None:
    """Say that the build lacks page tables, or return ``None``."""
    if "PAGEDKV" in left_out():
        return (
            "flash_attn_interface was built without page tables: build it without "
            "FLASH_ATTENTION_DISABLE_PAGEDKV"
        )
    return None


def why_not_built_for(problem: Problem) -> str | None:
    """Say what of ``problem`` the build was made without, or return ``None``."""
    if lacking := problem.features & features_left_out():
        return f"this build of it was made without {named(lacking)}"
    if "FP8" in left_out() and problem.scales is not None:
        return "this build of it was made without float8"
    if "FP16" in left_out() and problem.q.dtype == torch.float16:
        return "this build of it was made without float16"
    # A head dim takes the kernel of the next larger one.
    most = max((dim for dim in _HEAD_DIMS if f"HDIM{dim}" not in left_out()), default=0)
    if problem.q.shape[-1] > most:
        return f"this build of it takes head dims to {most}, not {problem.q.shape[-1]}"
    return None
