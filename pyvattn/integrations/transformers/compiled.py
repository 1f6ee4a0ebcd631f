# SPDX-License-Identifier: Apache-2.0
"""Keeping the cache's own work out of what torch.compile compiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Have ``function`` run as it is where a compiled model calls it.

    It maps memory and keeps books on the host, which no graph can hold. The compiled code
    breaks there, as at any call of Python.
    """
    disabled: Callable[P, R] = torch.compiler.disable(function)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # torch.compiler.disable alone costs some microseconds in every eager call.
        chosen = disabled if torch.compiler.is_compiling() else function
        return chosen(*args, **kwargs)

    # torch limits how often one code object is compiled: each function has its own.
    call.__code__ = call.__code__.replace(co_name=function.__name__)
    return wraps(function)(call)
