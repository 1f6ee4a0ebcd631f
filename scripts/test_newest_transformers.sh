#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run tests/integrations against the newest release of transformers that is known to work.
# It is installed in an environment of its own, which takes everything else from .venv.
#
#   test_newest_transformers.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

NEWEST=build/transformers-newest
PINS=tests/integrations/newest.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 HF_HUB_OFFLINE=1

site_of() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

if [ ! -e "$NEWEST/.done" ] || [ "$PINS" -nt "$NEWEST/.done" ]; then
  echo "==> installing $(grep -v '^#' "$PINS") beside .venv"
  rm -rf "$NEWEST"
  .venv/bin/python -m venv --without-pip "$NEWEST"
  # addsitedir() reads the .pth files there as well, so the editable package is found.
  echo "import site; site.addsitedir('$(site_of .venv)')" >"$(site_of "$NEWEST")/base.pth"
  .venv/bin/python -m pip --python "$NEWEST/bin/python" install --quiet -r "$PINS"
  touch "$NEWEST/.done"
fi

# The old name of an argument of generate() is what works with every release; ours may not use it.
exec "$NEWEST/bin/python" -m pytest tests/integrations \
  -W 'ignore:`past_key_values` is deprecated:FutureWarning' "$@"
