# SPDX-License-Identifier: Apache-2.0
"""``bench elastic``: vLLM engines that share KV memory, each alone under load, against stock.

Stock has as much of its own as ours share. All live at once, each in a process of its own, and
serve the same requests by turns, so each of ours takes what the one before it has used. The first
round warms up and is left out. Then a neighbour asks the idle engines for memory, bit by bit.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from pyvattn.arguments import Settings, check_type
from pyvattn.bench.report import Measure, Setup
from pyvattn.bench.serving import percentile
from pyvattn.bench.vllm_engine import Engine, Served, shape_of
from pyvattn.bench.vllm_pair import Pair, Plan, Rounds, compare, equal
from pyvattn.gpu_timing import require_gpu
from pyvattn.shared import SharedMemory, create_ledger, read_ledgers

_GIB, _MIB = 1 << 30, 1 << 20
# Of an equal part of the memory, as docs/elastic.md advises.
_GUARANTEED = 4
_WAIT_S = 5.0
# The chunk of a CPU's ledger: models there are small.
_CPU_CHUNK = 256 << 10


@dataclass(frozen=True)
class Options(Settings, least={"engines": 1, "new_tokens": 2, "rounds": 1, "ask_mib": 1}):
    """``engines`` of ours share ``kv_gib``, a quarter of an equal part of it guaranteed to each.

    ``requests`` prompts of 16 to ``prompt_tokens`` tokens, ``new_tokens`` each, 128 at a time.
    No turn starts that would end later than ``seconds`` after the start, 0: all do. A neighbour
    asks for ``ask_mib`` at a time, up to ``asks`` times.
    """

    model: str = "llama-3-8b"
    layers: int = 0
    engines: int = 2
    requests: int = 256
    prompt_tokens: int = 2048
    new_tokens: int = 128
    rounds: int = 2
    seconds: float = 0.0
    kv_gib: float = 24.0
    asks: int = 200
    ask_mib: int = 64
    backend: str = "FLASH_ATTN"
    block_size: int = 16
    driver: str = "auto"
    eager: bool = False
    device: str = "cuda"


def measure(options: Options) -> Iterator[Measure | Setup]:
    """Yield the setup and every measure. Raises DriverUnavailable without a GPU."""
    check_type("options", options, Options)
    began = time.perf_counter()
    if options.device != "cpu":
        require_gpu(0)
    with ExitStack() as stack:
        stack.enter_context(_ledger_of_its_own(options))
        engines = [stack.enter_context(closing(engine)) for engine in _start(options)]
        versions = {engine.name: engine.wait() for engine in engines}
        yield Setup("elastic", {**versions, "kv_gib": options.kv_gib})
        yield Measure("all engines are ready", time.perf_counter() - began, "s")
        yield from _alone(options, engines, began)
        yield from _asked(options)


@contextmanager
def _ledger_of_its_own(options: Options) -> Iterator[None]:
    """Keep the engines of this bench apart from any others on the machine."""
    before = os.environ.get("PYVATTN_RUNTIME_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYVATTN_RUNTIME_DIR"] = folder
        try:
            chunk = {"chunk_size": _CPU_CHUNK} if options.device == "cpu" else {}
            create_ledger(options.device, budget=int(options.kv_gib * _GIB), **chunk)
            yield
        finally:
            del os.environ["PYVATTN_RUNTIME_DIR"]
            if before is not None:
                os.environ["PYVATTN_RUNTIME_DIR"] = before


def _start(options: Options) -> Iterator[Engine]:
    memory = int(options.kv_gib * _GIB)
    common: dict[str, object] = {
        "max_model_len": options.prompt_tokens + options.new_tokens,
        "max_num_seqs": 128,
        "max_num_batched_tokens": 8192,
        "kv_cache_memory_bytes": memory,
        "enforce_eager": options.eager or options.device == "cpu",
    }
    if options.device != "cpu":
        common["attention_backend"] = options.backend
        common["gpu_memory_utilization"] = 0.9 / (options.engines + 1)
    # One in the caller's process has no loop that closes the rows of its last requests. On a CPU
    # vLLM would put the worker apart as well, and no memory is shared then.
    apart = options.device != "cpu"
    yield Engine("stock", options.model, options.layers, common, apart=apart)
    for name in _names(options):
        plug_in = {
            "memory": "shared",
            "name": name,
            "guarantee": memory // options.engines // _GUARANTEED,
            "driver": options.driver,
        }
        ours = {
            **common,
            "block_size": options.block_size,
            "worker_cls": "pyvattn.vllm.Worker",
            "scheduler_cls": "pyvattn.vllm.Scheduler",
            "additional_config": {"pyvattn": plug_in},
        }
        yield Engine(name, options.model, options.layers, ours, apart=apart)


def _names(options: Options) -> list[str]:
    return [f"engine {number + 1}" for number in range(options.engines)]


def _alone(options: Options, engines: list[Engine], began: float) -> Iterator[Measure]:
    """Yield what each makes of the requests, while the others are idle."""
    vocabulary = shape_of(options.model).vocabulary
    draw = random.Random(0)
    counts = [draw.randrange(16, options.prompt_tokens + 1) for _ in range(options.requests)]
    turns: list[dict[str, Served]] = []
    longest = 0.0
    for turn in range(1 + options.rounds):
        start = time.perf_counter()
        if turn > 1 and options.seconds and start - began + longest > options.seconds:
            break
        draw = random.Random(turn)
        prompts = [[draw.randrange(10, vocabulary) for _ in range(count)] for count in counts]
        order = engines[::-1] if turn % 2 else engines
        turns.append({each.name: each.serve(prompts, options.new_tokens) for each in order})
        longest = time.perf_counter() - start
    output = options.requests * options.new_tokens
    load = f"{options.requests} x (16 to {options.prompt_tokens} + {options.new_tokens}) tokens"
    # What vLLM compiles rounds differently in each of its processes.
    exact = options.eager or options.device == "cpu"
    plan = Plan(options.rounds, options.seconds, began, vocabulary, exact)
    for engine in engines[1:]:
        title = f"{engine.name} of {options.engines}, alone, {load}"
        rounds: Rounds = [([turn["stock"]], [turn[engine.name]]) for turn in turns]
        yield from equal(Pair(engines[0], engine, plan), title, rounds)
        yield from compare(
            title, rounds, 0, "output", "tokens/s", lambda s: output / s.seconds, at_least=0.99
        )
        yield from compare(title, rounds, 0, "p95 TPOT", "ms", _tpot, at_most=1.02)


def _tpot(served: Served) -> float:
    return 1e3 * percentile(served.per_token, 95)


def _asked(options: Options) -> Iterator[Measure]:
    """Yield how long idle engines take to give memory to a neighbour, and what they keep."""
    size = options.ask_mib * _MIB
    times: list[float] = []
    with SharedMemory(options.device, name="neighbour") as lease:
        while len(times) < options.asks and lease.held + size <= lease.reach:
            (ledger,) = read_ledgers()
            is_given = ledger.free < size and lease.headroom < size
            start = time.perf_counter()
            if not lease.wait_for(size, _WAIT_S) or not lease.take(size):
                break
            if is_given:
                times.append(time.perf_counter() - start)
        yield from _kept(options)
        lease.return_bytes(lease.held)
    yield Measure("asks that idle engines gave for", len(times), "asks")
    note = f"{options.ask_mib} MiB at a time, until they are leased; nothing is mapped there"
    for share, most in ((50, 10.0), (99, 50.0)) if len(times) > 1 else ():
        value = 1e3 * percentile(times, share)
        name = f"memory from idle engines, p{share}"
        yield Measure(name, value, "ms", at_most=most, rounds=len(times), note=note)


def _kept(options: Options) -> Iterator[Measure]:
    (ledger,) = read_ledgers()
    for member in ledger.members:
        if member.name in _names(options):
            yield Measure(
                f"{member.name}, idle: KV memory leased / guaranteed",
                member.lease / max(1, member.guarantee),
                "times",
                at_most=1.05,
                note="after a neighbour has asked for more",
            )
