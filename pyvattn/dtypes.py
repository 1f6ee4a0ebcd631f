# SPDX-License-Identifier: Apache-2.0
"""The element types that a KV cache can hold, by their torch names."""

from __future__ import annotations

from pyvattn.errors import SpecError
from pyvattn.text import shown

ITEMSIZE = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}

_ALIASES = {
    "float": "float32",
    "fp32": "float32",
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}


def dtype_name(dtype: object) -> str:
    """Return the canonical name of ``dtype``: a name, an alias such as ``bf16``, or a torch dtype.

    Raises :class:`~pyvattn.errors.SpecError` for anything else.
    """
    name = "" if isinstance(dtype, int) else str(dtype).removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in ITEMSIZE:
        raise SpecError(f"dtype {shown(dtype)} is not supported: use one of {', '.join(ITEMSIZE)}")
    return name
