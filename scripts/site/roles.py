# SPDX-License-Identifier: Apache-2.0
"""Turns the roles of docstrings (a class or a method in backticks) into links that are checked."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Extension, Function, GriffeLoader, Module, Object

_ROLE = re.compile(r":(?:class|meth|func|attr|mod):`(~?)([\w.]+)`")


class Roles(Extension):
    """Rewrites every docstring once the package is loaded and its names can be resolved."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **_: Any) -> None:
        """Visit all that has a docstring."""
        _visit(pkg)


def _visit(it: Object) -> None:
    if it.docstring is not None:
        it.docstring.value = _ROLE.sub(lambda found: _link(found, it), it.docstring.value)
    for name, member in [*it.members.items()]:
        if isinstance(member, Module) and name in (it.exports or ()):
            member = it.members[name] = _namesake(member)
        if isinstance(member, (Attribute, Class, Function, Module)):
            _visit(member)


def _namesake(module: Module) -> Object:
    """Return the function that a package exports under the name of the module it is in."""
    function = module.members[module.name]
    function.parent = module.parent
    return function


def _link(found: re.Match[str], at: Object) -> str:
    short, name = found.groups()
    path = name if name.startswith("pyvattn.") else _resolve(name, at)
    shown = name.rpartition(".")[2] if short else name
    return f"[`{shown}`][{path}]"


def _resolve(name: str, at: Object) -> str:
    """Return the full path of a name, looked for from the inside out."""
    first, dot, rest = name.partition(".")
    scope: Object | None = at
    while scope is not None:
        if isinstance(scope, Class) and first in scope.all_members:
            return f"{scope.path}.{name}"
        if isinstance(scope, Module) and first in scope.members:
            found = scope.members[first]
            return f"{found.target_path if found.is_alias else found.path}{dot}{rest}"
        scope = scope.parent
    return name  # autorefs says that it leads nowhere
