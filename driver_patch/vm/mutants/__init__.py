# SPDX-License-Identifier: MIT OR GPL-2.0
"""The ways in which test-mutants breaks the kernel code, each of which the tests must notice."""

from .accounts import ACCOUNTS
from .batches import BATCHES
from .bounds import BOUNDS
from .calls import CALLS
from .errors import ERRORS
from .gpu import GPU
from .handles import HANDLES
from .interface import INTERFACE
from .leftovers import LEFTOVERS
from .life import LIFE
from .locks import LOCKS
from .memory import MEMORY
from .mutant import Mutant
from .refusals import REFUSALS

MUTANTS = (
    *INTERFACE,
    *CALLS,
    *HANDLES,
    *MEMORY,
    *LIFE,
    *GPU,
    *ERRORS,
    *BOUNDS,
    *BATCHES,
    *ACCOUNTS,
    *REFUSALS,
    *LOCKS,
    *LEFTOVERS,
)

__all__ = ["MUTANTS", "Mutant"]
