# SPDX-License-Identifier: Apache-2.0
"""Which rows of a batch a caller means."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyvattn.errors import TensorError
from pyvattn.text import shown


def chosen_rows(indices: Tensor | Sequence[Any], rows: int) -> list[int]:
    """Return the rows that ``indices`` name, each from 0 to ``rows - 1``.

    As in indexing a tensor: numbers, negative ones from the end, or one boolean for each
    row. Raises :class:`~pyvattn.errors.TensorError` for anything else.
    """
    values = _listed(indices)
    if not isinstance(values, list) or any(isinstance(value, list) for value in values):
        raise TensorError(f"rows are named by one dimension of numbers, not by {shown(indices)}")
    if any(isinstance(value, bool) for value in values):
        return _by_booleans(values, rows)
    chosen = [_row(value, rows) for value in values]
    if not chosen:
        raise TensorError("no row is selected: name one at least, or call reset()")
    return chosen


def repeat_count(repeats: int) -> int:
    """Return ``repeats``, or raise :class:`~pyvattn.errors.TensorError` for what is no count."""
    count = whole_number("repeats", repeats)
    if count < 1:
        raise TensorError(f"repeats={shown(count)}: use a whole number from 1")
    return count


def whole_number(name: str, value: Any) -> int:
    """Return ``value`` as an int; raises :class:`~pyvattn.errors.TensorError` for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise TensorError(f"{name}={shown(value)}: use a whole number") from None


def _listed(indices: Any) -> Any:
    """Return a tensor, a sequence of numbers, or one of tensors with one, as a list."""
    try:
        return torch.as_tensor(indices, device="cpu").tolist()
    except (TypeError, ValueError, RuntimeError, OverflowError):  # the third on device "meta"
        raise TensorError(
            f"rows are named by a tensor or list of numbers, not {shown(indices)}"
        ) from None


def _by_booleans(values: list[bool], rows: int) -> list[int]:
    if len(values) != rows:
        raise TensorError(f"there are {len(values)} booleans for {rows} rows: give one for each")
    return chosen_rows([row for row, value in enumerate(values) if value], rows)


def _row(value: Any, rows: int) -> int:
    if not isinstance(value, int) or not -rows <= value < rows:
        raise TensorError(
            f"row {shown(value)} is not one of the {rows} rows: use {-rows} to {rows - 1}"
        )
    return value % rows
