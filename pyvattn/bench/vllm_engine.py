# SPDX-License-Identifier: Apache-2.0
"""One of the engines that ``bench vllm`` compares: vLLM in a process of its own.

Both live at once and take turns, so that what disturbs one disturbs the other too.
"""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pyvattn.bench.random_model import SHAPES, Shape
from pyvattn.bench.serving import Load, Run
from pyvattn.errors import ConfigError, Error

__all__ = ["Engine", "EngineFailed", "Served", "shape_of"]

# Standard deviations of weights: a trained model's, and those of vLLM's dummies, which lie
# between -0.001 and 0.001.
_STD, _DUMMY_STD = 0.02, 0.002 / math.sqrt(12)
# vLLM's kernels on a CPU want heads of at least 32 elements.
_TINY = Shape(256, 512, 4, 2, 1024, 2, "bfloat16")


class EngineFailed(Error, RuntimeError):
    """vLLM ended with an error, whose text follows."""


@dataclass(frozen=True)
class Served:
    """What serving some requests took, in seconds, and what came out of it.

    ``first`` and ``per_token`` have one value for each request: the time to its first token,
    and between two of those that follow. ``stats`` are those of ``RowMemory``, of ours.
    """

    seconds: float
    prompts: Sequence[list[int]]
    tokens: list[list[int]]
    first: list[float]
    per_token: list[float]
    cached: int
    stats: Mapping[str, float] = field(default_factory=dict)


def shape_of(model: str) -> Shape:
    """Return the sizes of a model. Raises :class:`~pyvattn.errors.ConfigError` for others."""
    shapes = {**SHAPES, "tiny": _TINY}
    if model not in shapes:
        raise ConfigError(f"model {model!r} is unknown: use one of {', '.join(shapes)}")
    return shapes[model]


class Engine:
    """An engine with these arguments of vLLM's ``LLM``; ``model`` is the name of a shape.

    ``masked``: vLLM's FLEX_ATTENTION is given the mask of :mod:`.vllm_mask`. ``apart``: vLLM's core
    has a process of its own and a loop that ends what requests leave behind, as a server's has. The
    engine starts at once, in the background; :meth:`serve` waits until it has.
    """

    def __init__(
        self,
        name: str,
        model: str,
        layers: int,
        options: Mapping[str, object],
        *,
        masked: bool = False,
        apart: bool = False,
    ) -> None:
        self.name = name
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_main,
            args=(theirs, name, model, layers, dict(options), masked, apart),
            name=f"vllm-{name}",
        )
        self._process.start()
        theirs.close()

    def wait(self) -> str:
        """Return vLLM's version, once the engine is ready."""
        return str(self._receive())

    def serve(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int | Sequence[int],
        *,
        forget: bool = False,
        arrivals: Sequence[float] | None = None,
    ) -> Served:
        """Serve requests; ``forget``: empty the prefix cache before.

        ``new_tokens`` of all, or of each. They come all at once, or at ``arrivals``, in ascending
        seconds.
        """
        counts = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
        self._ours.send(("serve", prompts, counts, forget, arrivals))
        served = self._receive()
        assert isinstance(served, Served)
        return served

    def run(self, load: Load) -> Run:
        """Serve ``load``, step by step: when each token was known is noted as well."""
        self._ours.send(("run", load))
        run = self._receive()
        assert isinstance(run, Run)
        return run

    def margins(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Return how far apart the two likeliest next tokens of each prompt are, in logits."""
        self._ours.send(("margins", prompts))
        margins = self._receive()
        assert isinstance(margins, list)
        return margins

    def close(self) -> None:
        """End the process, with those that vLLM has started."""
        self._ours.close()
        self._process.join(timeout=60)
        if self._process.is_alive():
            _kill_with_children(self._process)

    def _receive(self) -> object:
        try:
            answer: object = self._ours.recv()
        except EOFError:
            self._process.join()
            raise EngineFailed(
                f"{self.name}: the process ended with code {self._process.exitcode}; vLLM's own "
                "messages are above"
            ) from None
        if isinstance(answer, BaseException):
            raise EngineFailed(f"{self.name}: {type(answer).__name__}: {answer}") from None
        return answer


def _kill_with_children(process: BaseProcess) -> None:
    """Kill a process that has made itself the first of its group, and the group."""
    assert process.pid is not None
    with suppress(ProcessLookupError):  # it has only begun, and has no group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _main(
    parent: Connection,
    name: str,
    model: str,
    layers: int,
    options: dict[str, Any],
    masked: bool,
    apart: bool,
) -> None:
    """Be an engine until the parent closes its end.

    What vLLM compiles is kept where the user says, and apart: both compile at the same time.
    """
    os.setpgrp()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            HF_HUB_OFFLINE="1",
            # In one process what is measured is the engine and nothing between processes.
            VLLM_ENABLE_V1_MULTIPROCESSING="1" if apart else "0",
            # Workers in processes of their own get the functions that draw weights.
            VLLM_ALLOW_INSECURE_SERIALIZATION="1",
            VLLM_NO_USAGE_STATS="1",
            VLLM_CACHE_ROOT=f"{os.environ.get('VLLM_CACHE_ROOT', folder)}/{name}",
        )
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            _write_config(Path(folder), shape_of(model), layers)
            _answer(parent, folder, options, masked)
        except EOFError:
            pass
        except Exception as error:
            parent.send(EngineFailed(f"{type(error).__name__}: {error}"))
            raise


def _answer(parent: Connection, folder: str, options: dict[str, Any], masked: bool) -> None:
    import vllm

    llm = vllm.LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        disable_log_stats=False,
        seed=0,
        **options,
    )
    ours = "worker_cls" in options
    llm.apply_model(_draw_weights)
    if masked:
        from pyvattn.bench.vllm_mask import give_to_layers

        llm.apply_model(give_to_layers)
    parent.send(vllm.__version__)
    while True:
        task, prompts, *arguments = parent.recv()
        if task == "margins":
            parent.send(_margins(llm, vllm.SamplingParams, prompts))
            continue
        if task == "run":
            parent.send(_run(llm.llm_engine, vllm.SamplingParams, prompts))
            continue
        new_tokens, forget, arrivals = arguments
        if forget:
            llm.reset_prefix_cache()
        if ours:
            llm.collective_rpc("pyvattn_reset_stats")
        parent.send(_serve(llm, vllm.SamplingParams, prompts, new_tokens, arrivals, ours))


def _draw_weights(model: Any) -> None:
    """Give the model weights as large as a trained one's, the same in each engine.

    vLLM's dummies are so small, norms too, that tokens hardly depend on attention. Ranks of a model
    draw their own: with equal halves of the vocabulary each token would tie with another.
    """
    import torch

    parameters = list(model.named_parameters())
    generator = torch.Generator(parameters[0][1].device)
    generator.manual_seed(torch.distributed.get_rank())
    for name, parameter in parameters:
        if "norm" in name:
            parameter.data.fill_(1)
        elif name.endswith("weight_scale"):
            parameter.data.mul_(_STD / _DUMMY_STD)
        elif parameter.dim() > 1 and parameter.dtype.itemsize > 1:
            parameter.data.normal_(0, _STD, generator=generator)


def _margins(llm: Any, sampling: Any, prompts: Any) -> list[float]:
    wanted = [{"prompt_token_ids": ids} for ids in prompts]
    one = sampling(temperature=0, max_tokens=1, logprobs=2, detokenize=False)
    outputs = llm.generate(wanted, one, use_tqdm=False)
    likeliest = [
        sorted((each.logprob for each in output.outputs[0].logprobs[0].values()), reverse=True)
        for output in outputs
    ]
    return [first - second for first, second, *_ in likeliest]


def _serve(
    llm: Any, sampling: Any, prompts: Any, new_tokens: list[int], arrivals: Any, ours: bool
) -> Served:
    wanted = [{"prompt_token_ids": ids} for ids in prompts]
    greedy = _greedy(sampling, new_tokens)
    began = time.perf_counter()
    if arrivals is None:
        outputs = llm.generate(wanted, greedy, use_tqdm=False)
    else:
        outputs = _as_they_arrive(llm.llm_engine, wanted, greedy, arrivals)
    seconds = time.perf_counter() - began
    times = [output.metrics for output in outputs]
    return Served(
        seconds,
        prompts,
        [list(output.outputs[0].token_ids) for output in outputs],
        [each.first_token_latency for each in times],
        [
            (each.last_token_ts - each.first_token_ts) / max(1, count - 1)
            for each, count in zip(times, new_tokens, strict=True)
        ],
        sum(output.num_cached_tokens or 0 for output in outputs),
        llm.collective_rpc("pyvattn_stats")[0] if ours else {},
    )


def _run(engine: Any, sampling: Any, load: Load) -> Run:
    """Serve ``load``; times are readings of the clock that the parent reads too."""
    wanted = [{"prompt_token_ids": ids} for ids in load.prompts]
    greedy = _greedy(sampling, [load.new_tokens] * len(wanted))
    times: list[list[float]] = [[] for _ in wanted]

    def note(outputs: Any) -> None:
        now = time.perf_counter()
        for each in outputs:
            known = times[int(each.request_id)]
            known += [now] * (len(each.outputs[0].token_ids) - len(known))

    began = time.perf_counter()
    outputs = _as_they_arrive(engine, wanted, greedy, load.arrivals, note)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    return Run(tokens, times, began, load.arrivals)


def _greedy(sampling: Any, new_tokens: Sequence[int]) -> list[Any]:
    return [
        sampling(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        for count in new_tokens
    ]


def _as_they_arrive(
    engine: Any,
    wanted: Any,
    sampling: Any,
    arrivals: Any,
    note: Callable[[Any], None] = lambda outputs: None,
) -> list[Any]:
    """Serve requests that arrive so many seconds from now; return what vLLM says of each.

    ``note`` is told what each step said.
    """
    waiting = deque(enumerate(zip(wanted, sampling, arrivals, strict=True)))
    done: dict[int, Any] = {}
    # vLLM's own clock for arrivals: a request that a step kept waiting has waited since then.
    began = time.time()
    while waiting or engine.has_unfinished_requests():
        while waiting and began + waiting[0][1][2] <= time.time():
            index, (prompt, params, at) = waiting.popleft()
            engine.add_request(str(index), prompt, params, arrival_time=began + at)
        if engine.has_unfinished_requests():
            outputs = engine.step()
            note(outputs)
            done |= {int(each.request_id): each for each in outputs if each.finished}
        else:
            time.sleep(max(0.0, began + waiting[0][1][2] - time.time()))
    return [done[index] for index in range(len(done))]


def _write_config(folder: Path, shape: Shape, layers: int) -> None:
    """Write what vLLM reads of a Llama whose weights are dummies."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed,
        "num_hidden_layers": layers or shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": shape.dtype,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
