# SPDX-License-Identifier: Apache-2.0
"""The attention kernels that pyvattn knows: what each takes and needs. Nothing here imports one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec

Capability = tuple[int, int]
"""Of a CUDA device: major, minor."""

NO_DEVICE = "needs a CUDA device, and torch sees none"

_HALF = "float16 and bfloat16"
_EVERY = "float32, float16 and bfloat16"
_AMPERE, _HOPPER = (8, 0), (9, 0)


@dataclass(frozen=True)
class KnownKernel:
    """A kernel's name, what it takes, and what it needs beside torch.

    ``guard_tokens`` are those past a row's length that it may read, ``float8_guard_tokens`` those
    of K and V of a byte an element where they are more. ``least`` and ``most`` are the compute
    capabilities that it runs on; one without ``least`` runs on the CPU as well. Of those with a
    guard, ``most_head_dim`` is the largest head dim that it takes.
    """

    name: str
    supports: str
    guard_tokens: int = 0
    module: str = "torch"
    install: str = "pip install 'pyvattn[torch]'"
    least: Capability | None = None
    most: Capability | None = None
    float8_guard_tokens: int = 0
    most_head_dim: int | None = None

    def guard_for(self, itemsize: int) -> int:
        """Return how far past a row it may read, in tokens of elements of so many bytes."""
        if itemsize == 1 and self.float8_guard_tokens:
            return self.float8_guard_tokens
        return self.guard_tokens


@dataclass(frozen=True)
class KernelInfo:
    """A kernel's name, what it takes, and why it is unavailable here (``None``: it is available).

    ``guard_tokens`` are those past a row's length that it may read.
    """

    name: str
    supports: str
    unavailable: str | None
    guard_tokens: int


#: In the order of ``kernel="auto"``: those that take a whole batch at once come first.
KERNELS = (
    KnownKernel(
        "flash-attn-3",
        f"{_HALF}, head dims to 256, CUDA graphs",
        guard_tokens=192,  # its longest tile
        module="flash_attn_interface",
        install="build it from hopper/ of the flash-attention repository",
        least=_HOPPER,
        most=_HOPPER,
        most_head_dim=256,
        float8_guard_tokens=224,
    ),
    KnownKernel(
        "flash-attn-3-paged",
        f"{_HALF}, head dims to 256, CUDA graphs; no tail guard",
        module="flash_attn_interface",
        install="build it from hopper/ of the flash-attention repository",
        least=_HOPPER,
        most=_HOPPER,
    ),
    KnownKernel(
        "flash-attn-2",
        f"{_HALF}, head dims to 256, CUDA graphs",
        # FlashAttention-4 by itself makes a package `flash_attn` as well, without this module.
        module="flash_attn.flash_attn_interface",
        install="pip install flash-attn",
        least=_AMPERE,
    ),
    KnownKernel("torch-varlen", f"{_HALF}, head dims to 256, CUDA graphs", least=_AMPERE),
    KnownKernel(
        "flash-attn-4",
        f"{_HALF}, head dims 64, 96 and 128, on Hopper 192 and 256 as well",
        guard_tokens=192,
        module="flash_attn.cute",
        install="pip install flash-attn-4",
        least=_HOPPER,
        most_head_dim=256,
    ),
    KnownKernel(
        "flashinfer",
        f"{_HALF}, head dims 64, 128 and 256",
        module="flashinfer",
        install="pip install flashinfer-python",
        least=_AMPERE,
    ),
    KnownKernel("sdpa", f"{_EVERY}, any head dim"),
    KnownKernel("sdpa-cudnn", f"{_HALF} on CUDA, head dims to 256", least=(0, 0)),
    KnownKernel("sdpa-flash", f"{_HALF} on CUDA, head dims to 256; also float32 on the CPU"),
    KnownKernel("sdpa-efficient", _EVERY, least=(0, 0)),
    KnownKernel("sdpa-math", f"{_EVERY}, any head dim"),
    KnownKernel("flex", f"{_EVERY}, score and mask functions"),
    KnownKernel("reference", "every dtype, any head dim; in float64"),
)


def kernel_named(name: str) -> KnownKernel:
    """Return the kernel called ``name``, one of :data:`KERNELS`."""
    return next(kernel for kernel in KERNELS if kernel.name == name)


def survey(capability: Capability | None, no_device: str = NO_DEVICE) -> list[KernelInfo]:
    """Say of every kernel why it cannot run here, from what is installed.

    ``capability`` is that of the CUDA device; where it is ``None``, ``no_device`` says why.
    Whether what is installed can be imported is shown by ``pyvattn.attention.kernel_infos``.
    """

    def why_not(kernel: KnownKernel) -> str | None:
        if not _is_installed(kernel.module):
            return not_installed(kernel)
        return why_not_capable(kernel, capability, no_device)

    return [
        KernelInfo(kernel.name, kernel.supports, why_not(kernel), kernel.guard_tokens)
        for kernel in KERNELS
    ]


def not_installed(kernel: KnownKernel) -> str:
    """Say that the module of ``kernel`` is missing, and how to install it."""
    return f"{kernel.module} is not installed: {kernel.install}"


def why_not_capable(
    kernel: KnownKernel, capability: Capability | None, no_device: str = NO_DEVICE
) -> str | None:
    """Say why a CUDA device cannot run ``kernel``, or ``None``; see :func:`survey`."""
    if kernel.least is None:
        return None
    if capability is None:
        return no_device
    most = kernel.most or capability
    if kernel.least <= capability <= most:
        return None
    upper = "or later" if kernel.most is None else f"to {_dotted(kernel.most)}"
    return (
        f"needs compute capability {_dotted(kernel.least)} {upper}, the device has "
        f"{_dotted(capability)}"
    )


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))


def _is_installed(module: str) -> bool:
    # find_spec("a.b") would import the package a, and with it all that a imports.
    name, *inner = module.split(".")
    found = find_spec(name)
    for part in inner:
        if found is None or found.submodule_search_locations is None:
            return False
        name = f"{name}.{part}"
        found = PathFinder.find_spec(name, list(found.submodule_search_locations))
    return found is not None
