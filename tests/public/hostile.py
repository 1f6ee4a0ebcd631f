# SPDX-License-Identifier: Apache-2.0
"""Values that no argument of pyvattn is meant to be, and a few that some are."""

from __future__ import annotations

import decimal
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from tiny_models import torch

import pyvattn


class Hollow:
    """Has no attribute, no length, no number, and a repr of two lines."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hollow\n\x1b[2J>"


VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    2**64,
    10**30,
    10**5000,
    1.5,
    -0.5,
    float("nan"),
    float("inf"),
    1j,
    decimal.Decimal("1.5"),
    "",
    "x",
    "cpu",
    "auto",
    "host",
    "a\nb\x1b[31m",
    "nul\0",
    "\ud800",
    b"x",
    Path("/nowhere/at all"),
    [],
    [1],
    [-1],
    [[1]],
    [None],
    ["x"],
    [2**64],
    (1, 2),
    {},
    {1: 2},
    {"a": 1},
    set(),
    range(2),
    object(),
    Hollow(),
    ...,
    np.zeros((40, 40)),
    np.array([1, 0]),
    np.int32(1),
    np.float64(2.5),
    torch.zeros(3, 3),
    torch.tensor([1, 0]),
    torch.tensor([True, False]),
    torch.empty(0),
    torch.ones(2, device="meta"),
    torch.float16,
    torch.device("cpu"),
    torch.device("meta"),
    pyvattn.CacheSpec(1, 1, 8, max_slots=1, max_tokens=8),
    lambda *given, **named: None,
)

values = st.one_of(
    st.sampled_from(VALUES),
    st.integers(-(2**70), 0),
    st.integers(2**62, 2**70),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none()), max_size=4),
)
