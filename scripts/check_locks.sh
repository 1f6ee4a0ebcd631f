#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Check that fields of the C++ core are touched only with the mutex that they name, by
# clang's thread-safety analysis: see uvm_ext/base/mutex.hpp. clang comes from PyPI, in
# `ziglang`, with a C++ library of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export ZIG_GLOBAL_CACHE_DIR=$PWD/build/zig-cache

failed=0
for source in uvm_ext/{blocks,ledger,rows,cache}/*.cpp; do
  "$BIN/python" -m ziglang c++ -std=c++17 -O0 -c -Iuvm_ext \
    -Wthread-safety -Werror=thread-safety "$source" -o "$scratch/out.o" || failed=1
done
exit $failed
