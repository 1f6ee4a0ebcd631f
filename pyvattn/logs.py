# SPDX-License-Identifier: Apache-2.0
"""The loggers of the package: one for each module that has something to say, silent by default.

``logging.getLogger("pyvattn").setLevel(logging.INFO)`` and a handler of the application's show
which driver, page size and layout a cache takes; ``DEBUG`` also what was passed over, and why.
"""

from __future__ import annotations

import logging

# Without a handler of the application's nothing is written, warnings included.
logging.getLogger("pyvattn").addHandler(logging.NullHandler())


def logger_of(module: str) -> logging.Logger:
    """Return the logger of a module, given its ``__name__``."""
    return logging.getLogger(module)
