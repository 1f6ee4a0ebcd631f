#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Build the C++ core and its tests with a sanitizer, and run them.
#
#   sanitize.sh address,undefined
#   sanitize.sh thread
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizers=${1:?usage: sanitize.sh SANITIZERS}
build=build/sanitize-${sanitizers//,/-}
BIN=$PWD/.venv/bin
export PATH=$BIN:$PATH

echo "==> building the C++ tests with -fsanitize=$sanitizers"
mkdir -p "$build"
{
  cmake -S uvm_ext -B "$build" -G Ninja -DPYVATTN_PYTHON=OFF -DPYVATTN_TESTS=ON \
    -DCMAKE_BUILD_TYPE=None -DPYVATTN_WERROR=ON -DPYVATTN_SANITIZE="$sanitizers"
  cmake --build "$build" --target core_tests --parallel "${JOBS:-2}"
} >"$build/build.log" 2>&1 || { tail -n 40 "$build/build.log" >&2; exit 1; }

export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:check_initialization_order=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

# ThreadSanitizer wants its shadow at fixed addresses, which much address
# randomisation takes away. Not everybody may turn that off; then it has to do.
run=()
if setarch -R true 2>/dev/null; then run=(setarch -R); fi
# Where only one thread runs there is nothing for ThreadSanitizer to find.
part=()
if [ "$sanitizers" = thread ]; then part=(thread); fi
echo "==> running them"
"${run[@]}" "$build/core_tests" "${part[@]}"
