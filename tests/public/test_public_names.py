# SPDX-License-Identifier: Apache-2.0
"""Every public name says what it is."""

from __future__ import annotations

import inspect

from names import public_methods, public_objects


def _has_words(it):
    return bool((inspect.getdoc(it) or "").strip())


def test_every_public_name_has_a_docstring():
    missing = []
    for name, it in public_objects().items():
        if isinstance(it, type):
            missing += [] if _has_words(it) else [name]
            missing += [
                f"{name}.{method}"
                for method, member in public_methods(it)
                if (callable(member) or isinstance(member, (property, classmethod, staticmethod)))
                and not _has_words(getattr(it, method))
                and not _has_words(member)
            ]
        elif inspect.isroutine(it) and not _has_words(it):
            missing.append(name)
    assert not missing
