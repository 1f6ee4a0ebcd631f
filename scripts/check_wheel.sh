#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install a wheel into an environment of its own, away from the source tree, and use it
# there. pip takes nothing but what the wheel itself requires.
#
#   check_wheel.sh WHEEL [PYTHON]    the interpreter it was built for [that of .venv]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
wheel=$(realpath "${1:?usage: check_wheel.sh WHEEL [PYTHON]}")
python=${2:-$here/../.venv/bin/python}
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT

echo "==> installing $(basename "$wheel") into an empty environment"
"$python" -m venv "$room/env"
"$room/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  -c "$here/../constraints.txt" "$wheel"
cd "$room"
"$room/env/bin/python" "$here/check_wheel.py" "$wheel"
