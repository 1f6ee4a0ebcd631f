# SPDX-License-Identifier: Apache-2.0
"""The tiny models of tests/integrations are what public calls get as a model."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integrations"))
