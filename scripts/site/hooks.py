# SPDX-License-Identifier: Apache-2.0
"""What mkdocs calls while it builds the site: adds pages, and has links lead to them."""

from __future__ import annotations

import re
import sys
from os.path import relpath
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import pages

_LINK = re.compile(r"(\]\(\s*)([^)\s]+)(\s*\))")


def on_config(config: Any) -> Any:
    """Add the API reference to the navigation."""
    reference = [{path[4:-3]: path} for path in pages.api_pages()]
    config.nav.append({"API": reference})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no file of docs/."""
    made = {name: path.read_text(encoding="utf-8") for name, path in pages.READMES.items()}
    made |= pages.api_pages() | {"not-verified.md": pages.not_verified_page()}
    found = {name: _origin(name) for name in made}
    found |= {each.src_uri: pages.DOCS / each.src_uri for each in files.documentation_pages()}
    for name, origin in found.items():
        text = made.get(name) or origin.read_text(encoding="utf-8")
        for _, target, _ in _LINK.findall(text):
            if (path := _outside(origin, target)) is not None:
                made.setdefault(_site_name(path), pages.source_page(path))
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links that lead out of docs/ to the pages that stand for those files."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    origin = _origin(here)

    def lead(found: re.Match[str]) -> str:
        before, target, after = found.groups()
        path, anchor = target.partition("#")[::2]
        full = (origin.parent / path).resolve()
        if "://" in target or not path or not full.exists():
            return found[0]
        name = _site_name(full)
        return f"{before}{relpath(name, Path(here).parent)}{'#' * bool(anchor)}{anchor}{after}"

    return _LINK.sub(lead, markdown)


def _origin(name: str) -> Path:
    """Return the file that a page is, which its links are relative to."""
    return pages.READMES.get(name, pages.DOCS / name)


def _site_name(path: Path) -> str:
    """Return what stands for a file of the tree on the site."""
    for name, readme in pages.READMES.items():
        if path == readme:
            return name
    if path.is_file() and path.is_relative_to(pages.DOCS):
        return path.relative_to(pages.DOCS).as_posix()
    return f"source/{path.relative_to(pages.ROOT).as_posix()}.md"


def _outside(origin: Path, target: str) -> Path | None:
    """Return the folder, or file outside docs/, that a link leads to, if it is no page yet."""
    name, path = target.partition("#")[0], (origin.parent / target.partition("#")[0]).resolve()
    if "://" in target or not name or not path.exists() or path in pages.READMES.values():
        return None
    return None if path.is_file() and path.is_relative_to(pages.DOCS) else path
