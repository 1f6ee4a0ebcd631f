"""torch's attention held to one of its backends, to compare them.

``kernel="sdpa"`` lets torch choose; these refuse to run anything else than what they
are named for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from pyvattn.attention.problem import Kernel, Problem, by_row

_CPU = (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION)
_HALF = (torch.float16, torch.bfloat16)


class SdpaBackendKernel(Kernel):
    """scaled_dot_product_attention with one backend, one call for each row."""

    def __init__(self, name: str, backend: SDPBackend, supports: str) -> None:
        self.name = name
        self.supports = supports
        self._backend = backend

    def unavailable(self) -> str | None:
        """See :meth:`Kernel.unavailable`."""
        if self._backend in _CPU or torch.cuda.is_available():
            return None
        return "needs a CUDA device, and torch sees none"

    def unsupported(self, problem: Problem) -> str | None:
        """See :meth:`Kernel.unsupported`."""
        on_cuda = problem.q.device.type == "cuda"
        if not on_cuda and self._backend not in _CPU:
            return f"runs on CUDA devices, q is on {problem.q.device}"
        flash = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        if on_cuda and self._backend in flash and problem.q.dtype not in _HALF:
            return f"takes float16 and bfloat16, q is {problem.q.dtype}"
        return None

    def attend(self, problem: Problem) -> Tensor:
        """See :meth:`Kernel.attend`."""
        return by_row(problem, lambda q, k, v: self._attend(problem, q, k, v))

    def _attend(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, tokens = q.shape[0], k.shape[0]
        square = queries == tokens
        mask = None
        if problem.causal and not square and queries > 1:
            mask = causal_lower_right(queries, tokens)
        with sdpa_kernel(self._backend):
            out = scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                attn_mask=mask,
                is_causal=problem.causal and square,
                scale=problem.scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        return out[0].transpose(0, 1)


def sdpa_backends() -> list[SdpaBackendKernel]:
    """Return a kernel for each backend that torch has."""
    half = "float16 and bfloat16 on CUDA"
    return [
        SdpaBackendKernel("sdpa-cudnn", SDPBackend.CUDNN_ATTENTION, f"{half}, head dims to 256"),
        SdpaBackendKernel("sdpa-flash", SDPBackend.FLASH_ATTENTION, f"{half}, head dims to 256"),
        SdpaBackendKernel(
            "sdpa-efficient", SDPBackend.EFFICIENT_ATTENTION, "float32, float16 and bfloat16"
        ),
        SdpaBackendKernel("sdpa-math", SDPBackend.MATH, "every dtype, any head dim"),
    ]
