# SPDX-License-Identifier: Apache-2.0
"""The kernels that are known, and which one does a problem."""

from __future__ import annotations

from pyvattn.arguments import check_name, check_type
from pyvattn.attention.features import Feature, named
from pyvattn.attention.flash_attn2 import FlashAttention2Kernel
from pyvattn.attention.flash_attn3 import FlashAttention3Kernel
from pyvattn.attention.flash_attn3_paged import FlashAttention3PagedKernel
from pyvattn.attention.flash_attn4 import FlashAttention4Kernel
from pyvattn.attention.flashinfer import FlashInferKernel
from pyvattn.attention.flex import FlexKernel
from pyvattn.attention.kernel import Kernel
from pyvattn.attention.problem import Problem
from pyvattn.attention.reference import ReferenceKernel
from pyvattn.attention.sdpa import SdpaKernel
from pyvattn.attention.sdpa_backends import sdpa_backends
from pyvattn.attention.varlen import VarlenKernel
from pyvattn.dtypes import ITEMSIZE, dtype_name
from pyvattn.errors import ConfigError, UnsupportedError
from pyvattn.kernels import KERNELS, KernelInfo
from pyvattn.logs import logger_of

_log = logger_of(__name__)

# "auto" takes the first that is available and can do the problem.
_KERNELS: dict[str, Kernel] = {}


def register(kernel: Kernel, before: str | None = None) -> None:
    """Make ``kernel`` known to :func:`pyvattn.attention.attend`.

    ``kernel="auto"`` prefers it to the kernel called ``before``; by default it
    comes last. Raises :class:`~pyvattn.errors.ConfigError` if the name is taken
    or ``before`` is not known, and :class:`~pyvattn.errors.ArgumentError` for what is no kernel.
    """
    check_type("kernel", kernel, Kernel)
    check_name("kernel", kernel.name, such_as="my-kernel")
    if kernel.name in _KERNELS or kernel.name == "auto":
        raise ConfigError(f"a kernel called {kernel.name!r} is registered already")
    if before is not None:
        check_name("before", before, such_as="sdpa")
        _find(before)
    order = list(_KERNELS.values())
    place = next((i for i, known in enumerate(order) if known.name == before), len(order))
    order.insert(place, kernel)
    _KERNELS.clear()
    _KERNELS.update({each.name: each for each in order})
    _log.debug("kernel %s is registered, number %d of %d", kernel.name, place + 1, len(order))


def kernel_infos() -> list[KernelInfo]:
    """List the kernels in the order in which ``auto`` tries them."""
    return [
        KernelInfo(kernel.name, kernel.supports, kernel.unavailable(), kernel.guard_tokens)
        for kernel in _KERNELS.values()
    ]


def guard_needed(dtype: str = "bfloat16") -> int:
    """Return the ``guard_tokens`` with which ``kernel="auto"`` can take any kernel of this machine.

    That is the most that one of those available here reads past a row's length in a cache of
    ``dtype``.
    """
    itemsize = ITEMSIZE[dtype_name(dtype)]
    known = {kernel.name: kernel for kernel in KERNELS}
    return max(
        (
            known[info.name].guard_for(itemsize) if info.name in known else info.guard_tokens
            for info in kernel_infos()
            if info.unavailable is None
        ),
        default=0,
    )


def choose(
    name: str, problem: Problem, guard_tokens: int | None = None, with_lse: bool = False
) -> Kernel:
    """Return the kernel called ``name``, or for ``auto`` the first that can do ``problem``.

    ``guard_tokens`` are those of the cache; a kernel that reads further past a row's
    length cannot do the problem. ``None`` is for memory that needs no guard. ``with_lse``
    asks for one that returns the log-sum-exp.
    """
    check_name("kernel", name, such_as="auto")
    features = problem.features | ({Feature.LSE} if with_lse else set())
    if name != "auto":
        kernel = _find(name)
        if reason := _objection(kernel, problem, features, guard_tokens):
            raise UnsupportedError(f"kernel {name!r}: {reason}; use kernel='auto'")
        return kernel
    objections = []
    for kernel in _KERNELS.values():
        reason = _objection(kernel, problem, features, guard_tokens)
        if reason is None:
            return kernel
        objections.append(f"{kernel.name}: {reason}")
    raise UnsupportedError(f"no kernel can do this attention ({'; '.join(objections)})")


def _find(name: str) -> Kernel:
    if name not in _KERNELS:
        known = ", ".join(("auto", *_KERNELS))
        raise ConfigError(f"kernel {name!r} is unknown: use one of {known}")
    return _KERNELS[name]


def _objection(
    kernel: Kernel, problem: Problem, features: frozenset[Feature], guard_tokens: int | None
) -> str | None:
    if reason := kernel.unavailable():
        return reason
    if lacking := features - kernel.features:
        return f"does not do {named(lacking)}"
    if reason := kernel.unsupported(problem):
        return reason
    needed = kernel.guard_for(problem)
    if guard_tokens is not None and needed > guard_tokens:
        return (
            f"may read {needed} tokens past a row's length, and the cache guards "
            f"{guard_tokens}: open it with CacheSpec(guard_tokens={needed})"
        )
    return None


# As pyvattn.kernels lists them.
register(FlashAttention3Kernel())
register(FlashAttention3PagedKernel())
register(FlashAttention2Kernel())
register(VarlenKernel())
register(FlashAttention4Kernel())
register(FlashInferKernel())
register(SdpaKernel())
for _backend in sdpa_backends():
    register(_backend)
register(FlexKernel())
register(ReferenceKernel())
