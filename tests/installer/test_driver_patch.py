# SPDX-License-Identifier: Apache-2.0
"""The script that puts the patch into a tree of NVIDIA's kernel modules and takes it out."""

from __future__ import annotations

import graphlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "driver_patch" / "scripts" / "driver_patch.py"


@pytest.fixture(scope="module")
def patch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("driver_patch_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_tree(patch: ModuleType, root: Path, release: str = "550.163.01") -> Path:
    """The least that the script takes for a source tree: every anchor, among other lines."""
    lines: dict[str, list[str]] = {}
    for hook in patch.HOOKS:
        lines.setdefault(hook.file, ["/* first */"]).extend([hook.anchor, f"/* {hook.why} */"])
    lines["Kbuild"] = [f'ccflags-y += -DNV_VERSION_STRING=\\"{release}\\"']
    for name, text in lines.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(text) + "\n")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_applying_and_taking_out_restores_every_byte(patch: ModuleType, tmp_path: Path) -> None:
    root = make_tree(patch, tmp_path)
    before = contents(root)
    tree = patch.recognise(root)
    patch.apply(tree)
    patched = contents(root)
    for hook in patch.HOOKS:
        for line in hook.lines:
            assert line in patched[hook.file].decode()
    assert (
        "#define UVM_VATTN_BRANCH 550" in patched["nvidia-uvm/vattn/uvm_vattn_release.h"].decode()
    )
    assert (root / "nvidia-uvm/vattn/uvm_vattn_ioctl.h").is_file()
    patch.unapply(tree)
    assert contents(root) == before


def test_the_patch_is_small(patch: ModuleType, tmp_path: Path) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    assert patch.changed_lines(tree, patch.hooked_files(tree)) <= 25


def test_applying_twice_changes_nothing(patch: ModuleType, tmp_path: Path) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    patch.apply(tree)
    once = contents(tmp_path)
    assert "nothing to do" in patch.apply(tree)
    assert contents(tmp_path) == once


def test_taking_out_of_a_plain_tree_changes_nothing(patch: ModuleType, tmp_path: Path) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    before = contents(tmp_path)
    assert "nothing to do" in patch.unapply(tree)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("release", ["525.60.13", "545.29.06", "600.10"])
def test_an_unknown_branch_is_refused(patch: ModuleType, tmp_path: Path, release: str) -> None:
    make_tree(patch, tmp_path, release)
    with pytest.raises(patch.Refused, match=rf"{release}.*branch {release.split('.')[0]}"):
        patch.recognise(tmp_path)


def test_the_refusal_says_what_works_and_how_to_try_the_branch(
    patch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(patch, tmp_path, "610.43.02")
    with pytest.raises(patch.Refused, match=r"stock-uvm driver .*needs no patch.*TRY_BRANCH=1"):
        patch.recognise(tmp_path)
    monkeypatch.setenv("TRY_BRANCH", "1")
    tree = patch.recognise(tmp_path)
    patch.apply(tree)
    header = tmp_path / "nvidia-uvm/vattn/uvm_vattn_release.h"
    assert "#define UVM_VATTN_BRANCH 610" in header.read_text()


def test_the_places_of_the_patch_are_counted(patch: ModuleType, tmp_path: Path) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    assert "every place is found once" in patch.places(tree)
    hook = patch.HOOKS[0]
    path = tmp_path / hook.file
    path.write_text(path.read_text().replace(hook.anchor, "/* gone */"))
    assert f"0 x {hook.file}: {hook.anchor.strip()}" in patch.places(tree)
    assert "every place" not in patch.places(tree)


def test_what_is_no_tree_is_refused(patch: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(patch.Refused, match="not a tree"):
        patch.recognise(tmp_path)


def test_githubs_layout_is_recognised(patch: ModuleType, tmp_path: Path) -> None:
    make_tree(patch, tmp_path / "kernel-open")
    assert patch.recognise(tmp_path).root == tmp_path / "kernel-open"


def test_a_missing_anchor_is_refused_before_anything_is_written(
    patch: ModuleType, tmp_path: Path
) -> None:
    make_tree(patch, tmp_path)
    last = patch.HOOKS[-1]
    path = tmp_path / last.file
    path.write_text(path.read_text().replace(last.anchor, "/* rewritten by NVIDIA */"))
    before = contents(tmp_path)
    with pytest.raises(patch.Refused, match=re.escape(last.anchor.strip())):
        patch.apply(patch.recognise(tmp_path))
    assert contents(tmp_path) == before


def test_an_anchor_that_occurs_twice_is_refused(patch: ModuleType, tmp_path: Path) -> None:
    make_tree(patch, tmp_path)
    hook = patch.HOOKS[0]
    path = tmp_path / hook.file
    path.write_text(path.read_text() + hook.anchor + "\n")
    with pytest.raises(patch.Refused, match="2 times"):
        patch.apply(patch.recognise(tmp_path))


def test_another_version_of_the_patch_is_refused(patch: ModuleType, tmp_path: Path) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    patch.apply(tree)
    (tmp_path / "nvidia-uvm/vattn/uvm_vattn.c").write_text("/* older */\n")
    before = contents(tmp_path)
    with pytest.raises(patch.Refused, match="already patched by another version"):
        patch.apply(tree)
    assert contents(tmp_path) == before


def test_refresh_brings_another_version_up_to_date(patch: ModuleType, tmp_path: Path) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    patch.apply(tree)
    current = contents(tmp_path)
    ours = tmp_path / "nvidia-uvm/vattn"
    (ours / "uvm_vattn.c").write_text("/* older */\n")
    (ours / "uvm_vattn_gone.c").write_text("/* no longer part of it */\n")
    untouched = (tmp_path / "nvidia-uvm/uvm.c").stat().st_mtime_ns
    patch.refresh(tree)
    assert contents(tmp_path) == current
    assert (tmp_path / "nvidia-uvm/uvm.c").stat().st_mtime_ns == untouched


def test_a_patched_tree_without_its_record_is_refused(patch: ModuleType, tmp_path: Path) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    patch.apply(tree)
    shutil.rmtree(tmp_path / "nvidia-uvm/vattn")
    with pytest.raises(patch.Refused, match="already patched"):
        patch.apply(tree)


def test_a_tree_that_was_edited_since_is_not_unpatched(patch: ModuleType, tmp_path: Path) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    patch.apply(tree)
    path = tmp_path / "nvidia-uvm/uvm.c"
    path.write_text(path.read_text() + "/* mine */\n")
    before = contents(tmp_path)
    with pytest.raises(patch.Refused, match="changed after it was patched"):
        patch.unapply(tree)
    assert contents(tmp_path) == before


def test_an_error_while_writing_leaves_the_tree_as_it_was(
    patch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = patch.recognise(make_tree(patch, tmp_path))
    before = contents(tmp_path)
    real = patch.write
    fails_at = tmp_path / sorted({hook.file for hook in patch.HOOKS})[2]

    def write(path: Path, data: bytes) -> None:
        if path == fails_at:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(patch, "write", write)
    with pytest.raises(patch.Refused, match="No space left"):
        patch.apply(tree)
    assert contents(tmp_path) == before


def test_the_readme_lists_every_hook(patch: ModuleType) -> None:
    assert patch.hook_table() in (ROOT / "driver_patch/README.md").read_text()


def test_kernel_files_call_in_one_direction() -> None:
    """A function's file depends on the files whose functions it names: there is no circle."""
    sources = {path.name: path.read_text() for path in (ROOT / "driver_patch/src").glob("*.c")}
    home = {
        name: file
        for file, text in sources.items()
        for name in re.findall(
            r"^(?!static)\w[\w \t*]*?\b(uvm_vattn_\w+)\([^;{]*\)\n\{", text, re.M
        )
    }
    assert len(set(home.values())) == len(sources)
    calls = {
        file: {home[name] for name in re.findall(r"\b(uvm_vattn_\w+)\(", text) if name in home}
        - {file}
        for file, text in sources.items()
    }
    graphlib.TopologicalSorter(calls).prepare()
