# SPDX-License-Identifier: Apache-2.0
"""The pages of the site that are no file of docs/: READMEs, the API, what is not verified."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# Files of the tree that are pages by the name on the left.
READMES = {
    "index.md": ROOT / "README.md",
    "driver/patch.md": ROOT / "driver_patch" / "README.md",
    "driver/install.md": ROOT / "driver_patch" / "install" / "README.md",
    "driver/vm.md": ROOT / "driver_patch" / "vm" / "README.md",
}
# Modules with `__all__` that are not what users import: see tests/public/names.py.
_NOT_LIBRARY = (
    "pyvattn.cli",
    "pyvattn._native",
    "pyvattn.bench.vllm_engine",
    "pyvattn.integrations.vllm",
)
_UNVERIFIED = re.compile(
    r"^## (Not verified|Not there yet|What it does not do yet|Verified where)$"
)


def public_modules() -> list[str]:
    """Return the names of the modules that say what is public, found without importing any."""
    return [
        name for name, path in _modules() if not name.startswith(_NOT_LIBRARY) and _has_all(path)
    ]


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "pyvattn").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _has_all(path: Path) -> bool:
    return any(
        isinstance(target, ast.Name) and target.id == "__all__"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    )


def api_pages() -> dict[str, str]:
    """Return a page for each public module, made of its docstrings."""
    return {f"api/{name}.md": f"# {name}\n\n::: {name}\n" for name in public_modules()}


def not_verified_page() -> str:
    """Collect what pages say has not been verified, so that it is written once."""
    parts = ["# Not verified\n\nWhat the pages say has not been shown, or not on which machine.\n"]
    for page in [READMES["index.md"], *sorted(DOCS.glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix("# ")
        for heading, body in _sections(text):
            if _UNVERIFIED.match(heading):
                target = "index.md" if page.name == "README.md" else page.name
                parts.append(f"## {title}\n\n*[{target}]({target}):*\n\n{_from_docs(page, body)}\n")
    return "\n".join(parts)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    parts = re.split(r"^(## .*)$", text, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def _from_docs(page: Path, body: str) -> str:
    """Have links of ``body`` lead on from docs/: of a page's own anchors, and of README's."""
    if page.name == "README.md":
        return body.replace("](docs/", "](").replace("](driver_patch/", "](../driver_patch/")
    return body.replace("](#", f"]({page.name}#")


def source_page(path: Path) -> str:
    """Return a page that shows a file of the tree, or what is in a folder."""
    if path.is_dir():
        files = sorted(each.relative_to(path).as_posix() for each in path.rglob("*.*"))
        return f"# {path.relative_to(ROOT)}/\n\n" + "\n".join(f"- `{each}`" for each in files)
    kind = {".py": "python", ".json": "json", ".ipynb": "json"}.get(path.suffix, "text")
    text = path.read_text(encoding="utf-8")
    return f"# {path.relative_to(ROOT)}\n\n````{kind}\n{text}\n````\n"
