# SPDX-License-Identifier: Apache-2.0
"""The least time that each part of a step can take: bytes and operations over measured rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from pyvattn.bench.step_events import APPEND, ATTENTION, GEMM, NORMS, SAMPLING
from pyvattn.bench.timing import interleave
from pyvattn.gpu_timing import interleave_on_gpu
from pyvattn.spec import CacheSpec


@dataclass(frozen=True)
class Rates:
    """What the device does: bytes a second that a copy reads and writes, operations of a GEMM."""

    copied: float
    operations: float


@dataclass(frozen=True)
class Work:
    """What a part must move, in bytes, and compute, in operations, in one step."""

    bytes: float
    operations: float = 0.0

    def least(self, rates: Rates) -> tuple[float, str]:
        """Return the least seconds, and which of the two limits them."""
        return max((self.bytes / rates.copied, "bytes"),
                   (self.operations / rates.operations, "operations"))  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """What one step computes: so many tokens of so many rows, which attend to ``pairs``.

    ``read`` are the tokens in the cache that it reads, ``pairs`` those of a query and a token that
    it sees, and ``sampled`` the rows whose logits are needed.
    """

    computed: float
    read: float
    pairs: float
    sampled: float


def work_of(model: Any, spec: CacheSpec, tokens: Tokens) -> dict[str, Work]:
    """Return the work of each part of a Llama's step that has any to do."""
    config, item = model.config, model.dtype.itemsize
    layers, hidden = config.num_hidden_layers, config.hidden_size
    matrices = sum(p.numel() for p in model.get_decoder().layers.parameters() if p.dim() == 2)
    head = model.get_output_embeddings().weight.numel()
    heads = config.num_attention_heads * spec.head_dim
    both = heads + spec.kv_heads * spec.head_dim
    # A norm reads and writes, twice a layer; so does rotary; SwiGLU reads two and writes one.
    passed = layers * (4 * hidden + 2 * both + 3 * config.intermediate_size) + 2 * hidden
    new = spec.token_bytes_per_layer * layers
    return {
        ATTENTION: Work(tokens.read * spec.token_bytes, 4 * tokens.pairs * heads * layers),
        GEMM: Work(
            (matrices + head) * item, 2 * (matrices * tokens.computed + head * tokens.sampled)
        ),
        NORMS: Work(tokens.computed * passed * item),
        APPEND: Work(tokens.computed * (new + new // spec.itemsize * item)),
        SAMPLING: Work(tokens.sampled * config.vocab_size * item),
    }


def measure_rates(torch: Any, device: str, dtype: Any) -> Rates:
    """Measure a copy and a product of square matrices, as large as the device is fast."""
    on_gpu = device != "cpu"
    size, side = (1 << 30, 8192) if on_gpu else (64 << 20, 512)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "product": lambda: one @ other,
    }
    timed = interleave_on_gpu(calls, rounds=11) if on_gpu else interleave(calls, rounds=5)
    copy, product = (median(timed[name]) for name in calls)
    return Rates(2 * size / copy, 2 * side**3 / product)
