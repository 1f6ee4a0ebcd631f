# SPDX-License-Identifier: MIT OR GPL-2.0
"""The ways in which test-mutants breaks the kernel code, each of which the tests must notice."""

from .batches import BATCHES
from .bounds import BOUNDS
from .calls import CALLS
from .errors import ERRORS
from .gpu import GPU
from .handles import HANDLES
from .interface import INTERFACE
from .life import LIFE
from .memory import MEMORY
from .mutant import Mutant

MUTANTS = (*INTERFACE, *CALLS, *HANDLES, *MEMORY, *LIFE, *GPU, *ERRORS, *BOUNDS, *BATCHES)

__all__ = ["MUTANTS", "Mutant"]
