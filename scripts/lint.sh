#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Check or fix style and types with the tools of .venv.
#
#   lint.sh check   ruff, ruff format, mypy --strict, layers, clang-format, locks; every one runs
#   lint.sh fix     rewrite what ruff and clang-format can
set -uo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin

mapfile -t python < <(git ls-files -co --exclude-standard '*.py' '*.pyi' | grep -v '_native.pyi$')
mapfile -t cxx < <(git ls-files -co --exclude-standard 'uvm_ext/*.cpp' 'uvm_ext/*.hpp')

failed=()
run() {
  local name=$1
  shift
  printf '==> %s\n' "$name"
  "$@" || failed+=("$name")
}

case "${1:-}" in
  fix)
    "$BIN/ruff" check --fix "${python[@]}"
    "$BIN/ruff" format "${python[@]}"
    "$BIN/clang-format" -i "${cxx[@]}"
    ;;
  check)
    run "ruff check" "$BIN/ruff" check "${python[@]}"
    run "ruff format" "$BIN/ruff" format --check "${python[@]}"
    run "mypy --strict" "$BIN/mypy"
    run "layers" "$BIN/python" scripts/check_layers.py
    run "clang-format" "$BIN/clang-format" --dry-run -Werror "${cxx[@]}"
    run "locks" scripts/check_locks.sh
    if [ ${#failed[@]} -gt 0 ]; then
      printf 'lint: failed: %s. `make format` repairs what can be repaired automatically.\n' \
        "$(IFS=,; echo "${failed[*]}")" >&2
      exit 1
    fi
    ;;
  *)
    echo "usage: lint.sh check|fix" >&2
    exit 2
    ;;
esac
