#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fetch the tests of the installed transformers release from its source distribution into
# build/peers, through pip. Where there is no network the tests say so and are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
peers=build/peers
version=$("$python" -c 'from importlib.metadata import version; print(version("transformers"))')
release=$peers/transformers-$version
[ -e "$release/tests/test_modeling_common.py" ] && exit 0

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
fetch() {
  "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$peers" \
    "transformers==$version" &&
    # What the library's tests import and nothing else here needs.
    "$python" -m pip install --quiet --upgrade --target "$peers/packages" parameterized
}

echo "==> fetching the tests of transformers $version"
mkdir -p "$peers"
if ! timeout 120 bash -c "$(declare -f fetch); python=$python peers=$peers version=$version; fetch"; then
  echo "the tests of transformers $version could not be fetched: those that need them are skipped"
  exit 0
fi
tar -xzf "$release.tar.gz" -C "$peers" "transformers-$version/tests"
