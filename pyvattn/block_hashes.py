# SPDX-License-Identifier: Apache-2.0
"""What blocks of tokens are known by: a hash of theirs and all before, begun with a salt."""

from __future__ import annotations

import hashlib
import operator
from array import array
from collections.abc import Iterator, Sequence

from pyvattn.errors import ArgumentError
from pyvattn.text import shown


def token_ids(tokens: Sequence[int]) -> list[int]:
    """Return tokens as plain numbers.

    Raises :class:`~pyvattn.errors.ArgumentError` for what is no sequence of token ids.
    """
    try:
        return array("q", [operator.index(token) for token in tokens]).tolist()
    except (TypeError, OverflowError, RuntimeError):  # the last for tensors without values
        raise ArgumentError(f"{shown(tokens)} is no sequence of token ids") from None


def root_of(salt: bytes | str) -> bytes:
    """Return the digest that a chain of blocks begins with; raises ``ArgumentError``."""
    if isinstance(salt, str):
        return hashlib.sha256(b"str " + salt.encode("utf-8", "surrogatepass")).digest()
    if isinstance(salt, bytes):
        return hashlib.sha256(b"bytes " + salt).digest()
    raise ArgumentError(f"salt={shown(salt)}: use bytes or text")


def chain(last: bytes, ids: Sequence[int], block: int) -> Iterator[bytes]:
    """Yield the digest of each whole block, each made of the one before."""
    for begin in range(0, len(ids) - block + 1, block):
        last = hashlib.sha256(last + array("q", ids[begin : begin + block]).tobytes()).digest()
        yield last
