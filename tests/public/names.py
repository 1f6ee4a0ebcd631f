# SPDX-License-Identifier: Apache-2.0
"""The public names of pyvattn, read from the package itself: what `__all__` of a module holds."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pyvattn
from pyvattn.bench import BENCHES

# The command line has its own tests, the core is reached through the classes around it, and
# vLLM calls its integration by the names in pyvattn.vllm.
_NOT_LIBRARY = (
    "pyvattn.cli",
    "pyvattn.__main__",
    "pyvattn._native",
    "pyvattn.integrations.vllm",
    "pyvattn.bench.vllm_engine",
    "pyvattn.bench.vllm_mask",
)


def public_objects() -> dict[str, Any]:
    """Return every public object once, under the shortest name it has."""
    found: dict[str, Any] = {}
    for module in _modules():
        for name in module.__all__:
            found[f"{module.__name__}.{name}"] = getattr(module, name)
    for bench in BENCHES.values():
        module = importlib.import_module(bench.module)
        found |= {
            f"{bench.module}.{name}": getattr(module, name) for name in ("Options", "measure")
        }
    named: dict[int, str] = {}
    for name in sorted(found, key=lambda name: (name.count("."), name)):
        named.setdefault(id(found[name]), name)
    return {name: found[name] for name in sorted(named.values())}


@dataclass(frozen=True)
class Target:
    """Something public that can be called: a function, a class, or a method of ``owner``."""

    name: str
    function: Callable[..., Any]
    owner: type | None = None

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What a caller passes, by name."""
        try:
            given = dict(inspect.signature(self.function).parameters)
        except ValueError:  # made in C++, which tests/core/test_hostile.py tries
            return {}
        if self.owner is not None:
            given.pop("self", None)
        return given

    def __str__(self) -> str:
        return self.name.removeprefix("pyvattn.")


def public_callables() -> list[Target]:
    """Return every public function, class and method that takes an argument."""
    return [target for target in _targets() if target.parameters]


def public_methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public members of a class and of its bases in Python, as they are defined."""
    for base in kind.__mro__:
        if base.__module__.startswith("pyvattn") and base.__module__ != "pyvattn._native":
            yield from ((name, it) for name, it in vars(base).items() if not name.startswith("_"))


def _modules() -> Iterator[Any]:
    names = [
        "pyvattn",
        *(each.name for each in pkgutil.walk_packages(pyvattn.__path__, "pyvattn.")),
    ]
    for name in names:
        if name.startswith(_NOT_LIBRARY):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:  # of an engine that is not installed here
            continue
        if "__all__" in vars(module):
            yield module


def _targets() -> Iterator[Target]:
    for name, it in public_objects().items():
        if not isinstance(it, type):
            if inspect.isroutine(it):
                yield Target(name, it)
            continue
        if issubclass(it, (BaseException, Enum)) or getattr(it, "_is_protocol", False):
            continue
        if it.__module__ != "pyvattn._native" and not inspect.isabstract(it):
            yield Target(name, it)
        seen = set()
        for method, member in public_methods(it):
            if method not in seen and not isinstance(member, property):
                seen.add(method)
                bound = isinstance(member, (classmethod, staticmethod))
                function = getattr(it, method)
                if callable(function):
                    yield Target(f"{name}.{method}", function, None if bound else it)
