# SPDX-License-Identifier: Apache-2.0
"""Text from elsewhere in messages of ours: one line, without what a terminal would act on."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` with control characters, escapes among them, and lone surrogates as codes.

    Nothing that a file holds can then move a terminal's cursor or stop it from being printed.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """Return the repr of ``value`` for a message: one line, cut where it is long."""
    try:
        lines = repr(value).splitlines()
    except Exception:  # such as an int of more digits than Python writes
        return f"of type {type(value).__name__}"
    text = " ".join(printable(line.strip()) for line in lines)
    return text if len(text) <= 80 else f"{text[:80]}…"
