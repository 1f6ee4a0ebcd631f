#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Build the C++ tests from the core that the module was linked from, and run them.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$(.venv/bin/python -c 'import sys; print("build/cp{}{}-".format(*sys.version_info))')
build=$(echo "$build"*)
echo "==> building the C++ tests (a minute or two the first time)"
# A wheel that was built since has configured the folder without them.
.venv/bin/cmake -DPYVATTN_TESTS=ON "$build" >"$build/tests.log" 2>&1 ||
  { tail -n 40 "$build/tests.log" >&2; exit 1; }
.venv/bin/cmake --build "$build" --target core_tests --parallel "${JOBS:-2}" >"$build/tests.log" 2>&1 ||
  { tail -n 40 "$build/tests.log" >&2; exit 1; }
"$build/core_tests"
