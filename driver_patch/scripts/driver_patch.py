#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR GPL-2.0
"""Put the pyvattn patch into a tree of NVIDIA's open kernel modules, and take it out again.

A tree is any directory that holds nvidia-uvm/ and Kbuild, or has such a directory as kernel-open/:
NVIDIA's GitHub tree, an unpacked installer, a DKMS source under /usr/src, Debian's
nvidia-open-kernel-source. Nothing is written before everything was checked.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE / "hooks"))

from hooks import BRANCHES, HOOKS, Hook  # noqa: E402

#: Where our files go, and the record of what was done there.
OURS = Path("nvidia-uvm/vattn")
MANIFEST = OURS / "manifest.json"
SCRIPT = "driver_patch/scripts/driver_patch.py"
#: Set in the environment, or on make's command line, it lets a branch pass that was never tried.
TRY_BRANCH = "TRY_BRANCH"
RELEASE_HEADER = "uvm_vattn_release.h"
SOURCES = (".c", ".h", ".Kbuild")


class Refused(Exception):
    """The tree cannot be patched or unpatched; the message says why and what to do."""


@dataclass(frozen=True)
class Tree:
    """A source tree that was recognised by its own version."""

    root: Path
    release: str

    @property
    def branch(self) -> int:
        return int(self.release.split(".")[0])


def recognise(path: Path) -> Tree:
    """The tree at ``path``; raises Refused if it is none or of an unknown branch."""
    root = path / "kernel-open" if (path / "kernel-open" / "Kbuild").is_file() else path
    kbuild = root / "Kbuild"
    if not kbuild.is_file() or not (root / "nvidia-uvm" / "uvm.c").is_file():
        raise Refused(
            f"{path}: not a tree of NVIDIA's kernel modules (no Kbuild beside nvidia-uvm/uvm.c). "
            "Name the directory that holds nvidia-uvm/, such as kernel-open/."
        )
    found = re.search(r'-DNV_VERSION_STRING=\\"([0-9]+(?:\.[0-9]+)+)\\"', kbuild.read_text())
    if found is None:
        raise Refused(f"{kbuild}: names no release (NV_VERSION_STRING); the tree is not NVIDIA's.")
    tree = Tree(root, found.group(1))
    if tree.branch not in BRANCHES and not os.environ.get(TRY_BRANCH):
        known = ", ".join(map(str, BRANCHES))
        raise Refused(
            f"{root}: release {tree.release} is of branch {tree.branch}, which this patch was not "
            f"tried with (it knows {known}). pyvattn's stock-uvm driver (64K pages, one call each) "
            "needs no patch and works with the releases that `pyvattn info` knows; cumem (2M "
            "pages) works with any. To try the branch, see which of the patch's places it has "
            f"(`{TRY_BRANCH}=1 {SCRIPT} places {path}`), then build it (`make driver "
            f"{TRY_BRANCH}=1 DRIVER_SRC={path}`)."
        )
    return tree


def places(tree: Tree) -> str:
    """Each hook with how often its place is found in the tree; every one must be found once."""
    rows = []
    for hook in HOOKS:
        path = tree.root / hook.file
        lines = path.read_text().splitlines() if path.is_file() else []
        rows.append(f"{lines.count(hook.anchor)} x {hook.file}: {hook.anchor.strip()}")
    missing = sum(not row.startswith("1 x ") for row in rows)
    verdict = f"{missing} places are not found once" if missing else "every place is found once"
    return "\n".join([*rows, f"{tree.root}: release {tree.release}: {verdict}"])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def own_files(tree: Tree) -> dict[str, bytes]:
    """Name -> contents of all that goes into nvidia-uvm/vattn/, but the manifest."""
    files = {
        path.name: path.read_bytes()
        for directory in (HERE / "src", HERE / "uapi")
        for path in sorted(directory.iterdir())
        if path.suffix in SOURCES
    }
    files[RELEASE_HEADER] = (
        "/* SPDX-License-Identifier: MIT OR GPL-2.0 */\n"
        f"/* Written by driver_patch.py for release {tree.release}. */\n"
        f"#define UVM_VATTN_BRANCH {tree.branch}\n"
    ).encode()
    return files


def new_files(tree: Tree, hooked: dict[str, tuple[bytes, bytes]]) -> dict[str, bytes]:
    """File -> contents of all that the patch adds: the record of what was hooked, and our files."""
    record = {
        "release": tree.release,
        "hooked": {
            name: {"before": digest(before), "after": digest(after)}
            for name, (before, after) in hooked.items()
        },
    }
    ours = {str(OURS / name): data for name, data in own_files(tree).items()}
    return {str(MANIFEST): (json.dumps(record, indent=1) + "\n").encode(), **ours}


def apply_hook(text: str, hook: Hook) -> str:
    """``text`` with one hook put in."""
    lines = text.splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if line.rstrip("\r\n") == hook.anchor]
    if len(places) != 1:
        raise Refused(
            f"{hook.file}: the line {hook.anchor!r} occurs {len(places)} times instead of once; "
            "the file is not as NVIDIA published it, or pyvattn does not know this release."
        )
    at = places[0]
    ending = "\r\n" if lines[at].endswith("\r\n") else "\n"
    new = [line + ending for line in hook.lines]
    if hook.where == "before":
        lines[at:at] = new
    elif hook.where == "after":
        lines[at + 1 : at + 1] = new
    else:
        lines[at : at + 1] = new
    return "".join(lines)


def hooked_files(tree: Tree) -> dict[str, tuple[bytes, bytes]]:
    """File -> its contents before and after; raises Refused if a hook finds no place."""
    originals: dict[str, bytes] = {}
    for name in {hook.file for hook in HOOKS}:
        path = tree.root / name
        if not path.is_file():
            raise Refused(f"{path}: missing; the tree of release {tree.release} is not whole.")
        originals[name] = path.read_bytes()
        if b"uvm_vattn" in originals[name]:
            raise Refused(
                f"{path}: already patched, but {tree.root / MANIFEST} does not say how. "
                "Start from a fresh copy of the tree."
            )
    return patched_from(originals)


def patched_from(originals: dict[str, bytes]) -> dict[str, tuple[bytes, bytes]]:
    """File -> its contents before and after all hooks."""
    after = dict(originals)
    for hook in HOOKS:
        after[hook.file] = apply_hook(after[hook.file].decode(), hook).encode()
    return {name: (originals[name], after[name]) for name in sorted(originals)}


def read_manifest(tree: Tree) -> dict[str, Any] | None:
    path = tree.root / MANIFEST
    if not (tree.root / OURS).exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Refused(
            f"{path}: cannot be read ({error}), so what was patched is unknown. "
            "Start from a fresh copy of the tree."
        ) from error
    return manifest


def write(path: Path, data: bytes) -> None:
    """Replace a file as one step, keeping its mode; leave it alone if it has these contents."""
    if path.is_file() and path.read_bytes() == data:
        return
    temporary = path.with_name(path.name + ".vattn-new")
    temporary.write_bytes(data)
    if path.exists():
        shutil.copymode(path, temporary)
    os.replace(temporary, path)


def is_current(tree: Tree, manifest: dict[str, Any]) -> bool:
    """Was the tree patched with exactly the files of this checkout, and is it still so?"""
    for name, data in own_files(tree).items():
        path = tree.root / OURS / name
        if not path.is_file() or path.read_bytes() != data:
            return False
    return all(
        digest((tree.root / name).read_bytes()) == entry["after"]
        for name, entry in manifest["hooked"].items()
    )


def apply(tree: Tree) -> str:
    """Patch the tree; returns what was done."""
    manifest = read_manifest(tree)
    if manifest is not None:
        if is_current(tree, manifest):
            return f"{tree.root}: release {tree.release} is patched already, nothing to do"
        raise Refused(
            f"{tree.root}: already patched by another version of pyvattn or changed since. "
            "Run unapply (make driver-unpatch) first."
        )

    hooked = hooked_files(tree)
    write_patch(tree, hooked)
    lines = changed_lines(tree, hooked)
    return f"{tree.root}: release {tree.release} patched ({lines} lines changed)"


def refresh(tree: Tree) -> str:
    """Bring a patched tree up to date with this checkout, touching only files that differ."""
    manifest = read_manifest(tree)
    if manifest is None or is_current(tree, manifest):
        return apply(tree)
    originals = original_files(tree, manifest)
    write_patch(tree, patched_from(originals))
    for path in (tree.root / OURS).iterdir():
        if path.suffix in SOURCES and path.name not in own_files(tree):
            path.unlink()
    return f"{tree.root}: release {tree.release}, patch brought up to date"


def write_patch(tree: Tree, hooked: dict[str, tuple[bytes, bytes]]) -> None:
    """Write our files and the hooked ones; on an error leave the hooked ones as they were."""
    is_new = not (tree.root / OURS).exists()
    (tree.root / OURS).mkdir(exist_ok=True)
    done: list[str] = []
    try:
        for name, data in new_files(tree, hooked).items():
            write(tree.root / name, data)
        for name, (_, after) in hooked.items():
            write(tree.root / name, after)
            done.append(name)
    except OSError as error:
        for name in done:
            write(tree.root / name, hooked[name][0])
        if is_new:
            shutil.rmtree(tree.root / OURS, ignore_errors=True)
        raise Refused(f"{tree.root}: cannot be written, left as it was: {error}") from error


def changed_lines(tree: Tree, hooked: dict[str, tuple[bytes, bytes]]) -> int:
    """Lines added to or changed in NVIDIA's files, as a diff counts them."""
    return sum(line.startswith("+") and not line.startswith("+++") for line in diff(tree, hooked))


def diff(tree: Tree, hooked: dict[str, tuple[bytes, bytes]]) -> list[str]:
    """The patch of NVIDIA's own files, as unified diff lines."""
    lines: list[str] = []
    for name, (before, after) in sorted(hooked.items()):
        lines += difflib.unified_diff(
            before.decode().splitlines(keepends=True),
            after.decode().splitlines(keepends=True),
            f"a/{name}",
            f"b/{name}",
        )
    return lines


def whole_patch(tree: Tree, path: Path) -> bytes:
    """The patch with all that it adds, for `patch -p1` in ``path``, which holds the tree."""
    if read_manifest(tree) is not None:
        raise Refused(f"{tree.root}: already patched. Run unapply (make driver-unpatch) first.")
    hooked = hooked_files(tree)
    added = {name: (b"", data) for name, data in new_files(tree, hooked).items()}
    prefix = tree.root.relative_to(path)
    return b"".join(
        file_patch(str(prefix / name), before, after)
        for name, (before, after) in sorted({**hooked, **added}.items())
    )


def file_patch(name: str, before: bytes, after: bytes) -> bytes:
    """The unified diff of one file; ``before`` is empty for a new one."""
    origin = f"a/{name}" if before else "/dev/null"
    lines = difflib.diff_bytes(
        difflib.unified_diff,
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        origin.encode(),
        f"b/{name}".encode(),
    )
    # Unified diffs mark a last line without a newline; difflib does not.
    return b"".join(
        line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"
        for line in lines
    )


def remove_hook(text: str, hook: Hook) -> str:
    """``text`` without the lines of one hook."""
    ending = "\r\n" if "\r\n" in text else "\n"
    new = "".join(line + ending for line in hook.lines)
    anchor = hook.anchor + ending
    patched, plain = {
        "before": (new + anchor, anchor),
        "after": (anchor + new, anchor),
        "instead": (new, anchor),
    }[hook.where]
    if text.count(patched) != 1:
        raise Refused(f"{hook.file}: the patched lines at {hook.anchor!r} were changed since.")
    return text.replace(patched, plain)


def unapply(tree: Tree) -> str:
    """Take the patch out; the tree is byte for byte as before, or refused and untouched."""
    manifest = read_manifest(tree)
    if manifest is None:
        return f"{tree.root}: release {tree.release} is not patched, nothing to do"

    for name, data in original_files(tree, manifest).items():
        write(tree.root / name, data)
    shutil.rmtree(tree.root / OURS)
    return f"{tree.root}: release {tree.release} is as it was"


def original_files(tree: Tree, manifest: dict[str, Any]) -> dict[str, bytes]:
    """File -> what it was before it was patched, by its recorded digest."""
    originals: dict[str, bytes] = {}
    for name, entry in manifest["hooked"].items():
        text = (tree.root / name).read_bytes().decode()
        for hook in reversed(HOOKS):
            if hook.file == name:
                text = remove_hook(text, hook)
        originals[name] = text.encode()
        if digest(originals[name]) != entry["before"]:
            raise Refused(
                f"{tree.root / name}: was changed after it was patched; taking the patch out would "
                "not give the original back. Start from a fresh copy of the tree."
            )
    return originals


def hook_table() -> str:
    """Every hooked line, as the Markdown table of driver_patch/README.md."""
    rows = ["| file | line | why |", "| --- | --- | --- |"]
    for hook in HOOKS:
        lines = "<br>".join(f"`{line.strip()}`" for line in hook.lines if line.strip())
        note = f"instead of `{hook.anchor.strip()}`: " if hook.where == "instead" else ""
        rows.append(f"| {hook.file.removeprefix('nvidia-uvm/')} | {note}{lines} | {hook.why} |")
    return "\n".join(rows)


def describe(tree: Tree) -> str:
    manifest = read_manifest(tree)
    if manifest is None:
        hooked = hooked_files(tree)
        return (
            f"{tree.root}: release {tree.release}, not patched; the patch applies "
            f"({changed_lines(tree, hooked)} lines in {len(hooked)} files)"
        )
    state = "patched" if is_current(tree, manifest) else "patched by another version or changed"
    return f"{tree.root}: release {tree.release}, {state}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = (
        "check",
        "apply",
        "refresh",
        "unapply",
        "diff",
        "patch",
        "places",
        "release",
        "hooks",
    )
    parser.add_argument("action", choices=actions)
    parser.add_argument("tree", type=Path, nargs="?", help="needed by all actions but hooks")
    options = parser.parse_args(arguments)
    if options.action == "hooks":
        print(hook_table())
        return 0
    if options.tree is None:
        parser.error(f"{options.action} needs a tree")
    try:
        tree = recognise(options.tree)
        if options.action == "apply":
            print(apply(tree))
        elif options.action == "refresh":
            print(refresh(tree))
        elif options.action == "unapply":
            print(unapply(tree))
        elif options.action == "diff":
            sys.stdout.writelines(diff(tree, hooked_files(tree)))
        elif options.action == "patch":
            sys.stdout.buffer.write(whole_patch(tree, options.tree))
        elif options.action == "places":
            print(places(tree))
        elif options.action == "release":
            print(tree.release)
        else:
            print(describe(tree))
    except (Refused, OSError) as error:
        print(f"driver_patch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
