# SPDX-License-Identifier: Apache-2.0
"""Engines of real vLLM in this process, one after the other, and what each of them said."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from unittest import mock

WORKER = "pyvattn.vllm.Worker"
# Of every engine here, in this process and behind a server.
OPTIONS = {
    # On a CPU vLLM makes bfloat16 of float32 unless it is told not to.
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 12,
    "max_num_batched_tokens": 512,
    "block_size": 128,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 128 << 20,
    "seed": 0,
}


@dataclass
class Run:
    """What one engine generated, and what happened meanwhile."""

    tokens: list[list[int]]
    cached: int
    preemptions: int
    stats: dict = field(default_factory=dict)


@contextlib.contextmanager
def engine(model, **options):
    """An ``LLM`` on the CPU, shut down at the end."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    with _kernels_registered_once():
        llm = LLM(**{"model": model, **OPTIONS, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def _kernels_registered_once():
    """Keep a second engine from looking for Triton kernels to replace.

    They are replaced for the process, and vLLM's search trips over numba, which drafting loads.
    """
    from vllm.platforms.cpu import CpuPlatform
    from vllm.triton_utils.dispatcher import _registry

    if not _registry:
        return contextlib.nullcontext()
    return mock.patch.object(CpuPlatform, "register_triton_kernel_overrides")


def prompts():
    """Requests of many lengths; half of them begin with the same 300 tokens."""
    draw = random.Random(0)

    def tokens(count):
        return [draw.randrange(3, 1000) for _ in range(count)]

    shared = tokens(300)
    own = [tokens(draw.randrange(5, 300)) for _ in range(8)]
    return [shared + tokens(draw.randrange(5, 200)) for _ in range(8)] + own


def generate(llm, new_tokens=24):
    """Serve :func:`prompts` twice, so that the second round finds prefixes."""
    from vllm import SamplingParams

    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    preempted = count_calls(scheduler, "_preempt_request")
    sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    wanted = [{"prompt_token_ids": ids} for ids in prompts()]
    outputs = [
        output for _ in range(2) for output in llm.generate(wanted, sampling, use_tqdm=False)
    ]
    return Run(
        [list(output.outputs[0].token_ids) for output in outputs],
        sum(output.num_cached_tokens or 0 for output in outputs),
        len(preempted),
    )


def run(model, new_tokens=24, **options):
    """Return what an engine with these options makes of :func:`prompts`."""
    with engine(model, **options) as llm:
        result = generate(llm, new_tokens)
        if "worker_cls" in options:
            (result.stats,) = llm.collective_rpc("pyvattn_stats")
    return result


def count_calls(owner, name):
    """Return a list that grows by one with each call of ``owner``'s method."""
    calls = []
    original = getattr(owner, name)

    def counted(*arguments, **options):
        calls.append(name)
        return original(*arguments, **options)

    setattr(owner, name, counted)
    return calls
