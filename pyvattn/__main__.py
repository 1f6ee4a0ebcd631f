# SPDX-License-Identifier: Apache-2.0
"""``python -m pyvattn`` is the command ``pyvattn``."""

from pyvattn.cli import main

main()
