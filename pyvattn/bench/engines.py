# SPDX-License-Identifier: Apache-2.0
"""The two continuous-batching engines of ``bench transformers``: ours and the library's own.

Each is set up once and serves one :class:`~pyvattn.bench.serving.Load` after the other.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from pyvattn.bench.serving import Load, Run
from pyvattn.cache import KVCache
from pyvattn.errors import UnsupportedError
from pyvattn.planner import guarded_for

_PACKAGES = ("pyvattn", "transformers", "torch", "triton", "kernels", "vllm")
# The modules that hold FlashAttention; distributions of several names have them.
_FLASH = ("flash_attn_interface", "flash_attn")
_SETTINGS = (
    "block_size",
    "page_size",
    "num_blocks",
    "max_batch_tokens",
    "max_memory_percent",
    "max_requests_per_batch",
    "max_blocks_per_request",
    "allow_block_sharing",
    "use_async_batching",
    "use_cuda_graph",
    "default_compile_level",
    "scheduler_type",
)


class Ours:
    """Our engine over a cache that holds every request of ``load``, and of loads like it."""

    def __init__(
        self,
        model: Any,
        load: Load,
        *,
        device: str,
        driver: str,
        page_size: str,
        layout: str,
        kv_dtype: str | None = None,
        guard_for: str | None = None,
        compile: bool = False,
        fuse_projections: bool = False,
    ) -> None:
        from pyvattn.integrations.transformers import Engine, spec_for
        from pyvattn.integrations.transformers.graphs import decode_kernels

        requests = len(load.prompts)
        spec = spec_for(model, max_slots=requests + 1, max_tokens=load.longest, dtype=kv_dtype)
        if guard_for is not None:
            spec = guarded_for(spec, guard_for)
        self.cache = KVCache(
            spec,
            device=device,
            driver=driver,
            page_size=page_size,
            layout=layout,
            memory=2 * spec.max_slots * spec.row_bytes + (64 << 20),
        )
        self._requests: list[Any] = []
        self._times: list[list[float]] = []
        try:
            self.engine = Engine(
                model,
                self.cache,
                on_step=self._note,
                compile=compile,
                fuse_projections=fuse_projections,
            )
            self.captured = self._capture(requests)
        except BaseException:
            self.cache.close()
            raise
        graph = "decode in a CUDA graph" if self.engine.graphs else "no CUDA graph"
        kernels = " and ".join(each.name for each in decode_kernels(model, self.cache))
        stored = "" if kv_dtype is None else f", KV in {spec.dtype}"
        layers = ", layers compiled" if compile else ""
        layers += ", projections fused" if fuse_projections else ""
        self.note = f"{self.cache.driver}, {kernels}, {graph}{layers}{stored}"

    def _capture(self, rows: int) -> float | None:
        """Capture every batch size to ``rows``; returns the seconds, or None without graphs."""
        if not self.engine.graphs:
            return None
        began = time.perf_counter()
        self.engine.capture(rows)
        return time.perf_counter() - began

    def run(self, load: Load) -> Run:
        """Serve ``load``: a request is submitted in the first step after it has arrived."""
        from pyvattn.integrations.transformers import ATTENTION

        engine = self.engine
        engine.model.set_attn_implementation(ATTENTION)
        self._requests, self._times = [], []
        coming = deque(zip(load.arrivals, load.prompts, strict=True))
        waited = self.cache.stats().map_seconds_blocking
        began = time.perf_counter()
        while coming or engine.busy:
            now = time.perf_counter() - began
            while coming and coming[0][0] <= now:
                self._requests.append(engine.submit(coming.popleft()[1], load.new_tokens))
                self._times.append([])
            if engine.busy:
                engine.step()
            else:
                time.sleep(max(0.0, coming[0][0] - now))
        waited = self.cache.stats().map_seconds_blocking - waited
        tokens = [request.output for request in self._requests]
        return Run(tokens, self._times, began, load.arrivals, waited)

    def submit(self, load: Load) -> list[Any]:
        """Submit all of ``load`` at once, and return the requests: the caller steps the engine."""
        from pyvattn.integrations.transformers import ATTENTION

        self.engine.model.set_attn_implementation(ATTENTION)
        self._requests = [self.engine.submit(each, load.new_tokens) for each in load.prompts]
        self._times = [[] for _ in self._requests]
        return self._requests

    def finish(self) -> None:
        """Step until nothing is left to do."""
        self.engine.run()

    def close(self) -> None:
        """Close the engine and its cache."""
        self.engine.close()
        self.cache.close()

    def _note(self, engine: Any) -> None:
        now = time.perf_counter()
        for request, times in zip(self._requests, self._times, strict=True):
            times += [now] * (len(request.output) - len(times))


class Library:
    """The library's own continuous batching, kept warm from run to run.

    ``against="library"`` takes what the library chooses by itself on this machine:
    FlashAttention-3, else -2, where it is installed, and with them its decode path over block
    tables, CUDA graphs and asynchronous batches. ``"sdpa"`` holds it to SDPA over its paged
    cache. ``compile_level`` is its ``default_compile_level``.
    """

    def __init__(self, model: Any, load: Load, *, against: str, compile_level: int) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig
        from transformers.generation.continuous_batching.utils import WorkloadHints

        self._model = model
        self._attention = "sdpa"
        # No token ends a request: each gets as many as ours.
        self._generation = GenerationConfig(
            max_new_tokens=load.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        settings: dict[str, Any] = {"default_compile_level": compile_level}
        if against == "sdpa":
            # Up to transformers 5.17 only the paged name keeps it from switching by itself.
            if "auto_switch_to_flash" in {field.name for field in fields(ContinuousBatchingConfig)}:
                settings["auto_switch_to_flash"] = False
            else:
                self._attention = "paged|sdpa"
        self._settings = ContinuousBatchingConfig(**settings)
        if model.device.type == "cpu":
            _limit_host_memory(self._settings, load)
        self._hints = WorkloadHints(
            max_prompt_length=max(map(len, load.prompts)),
            max_generated_length=load.new_tokens,
            num_requests=len(load.prompts),
        )
        self.attention = ""
        self.settings: dict[str, object] = {}

    @property
    def name(self) -> str:
        """What the library runs, as it calls it; known once it has run."""
        level = self.settings["default_compile_level"]
        return f"transformers, {self.attention}" + (f", compile level {level}" if level else "")

    def _note(self, manager: Any) -> None:
        """Remember what the library chose."""
        self.attention = self._model.config._attn_implementation
        chosen = manager.continuous_batching_config
        self.settings = {
            name: value for name in _SETTINGS if (value := getattr(chosen, name, None)) is not None
        }

    def _running(self) -> Any:
        """Return the library's context manager of the manager that it keeps on the model."""
        self._model.set_attn_implementation(self._attention)
        return self._model.continuous_batching_context_manager(
            generation_config=self._generation,
            continuous_batching_config=self._settings,
            workload_hints=self._hints,
            persistent_manager=True,
        )

    def run(self, load: Load) -> Run:
        """Serve ``load``: each request is added at the time of its arrival."""
        with self._running() as manager:
            began = time.perf_counter()
            names = []
            for arrival, prompt in zip(load.arrivals, load.prompts, strict=True):
                time.sleep(max(0.0, began + arrival - time.perf_counter()))
                names.append(
                    manager.add_request(
                        prompt,
                        max_new_tokens=load.new_tokens,
                        record_timestamps=True,
                        eos_token_id=-1,
                    )
                )
            found = _collect(manager, len(names))
            self._note(manager)
        outputs = [found[name] for name in names]
        return Run(
            [output.generated_tokens for output in outputs],
            [output.timestamps for output in outputs],
            began,
            load.arrivals,
        )

    def close(self) -> None:
        """Drop what the library keeps on the model."""
        self._model.destroy_cached_continuous_batching_manager()


def _collect(manager: Any, count: int) -> dict[str, Any]:
    """Wait for ``count`` finished requests; return the outputs by name."""
    found: dict[str, Any] = {}
    error = "its log says why"
    while len(found) < count:
        output = manager.get_result(timeout=1)
        if output is None:
            if not manager.is_running():
                break
        elif output.error is not None:
            error = output.error
            break
        elif output.is_finished():
            found[output.request_id] = output
    if len(found) < count:
        raise UnsupportedError(
            f"transformers' continuous batching finished {len(found)} of {count} requests ({error})"
            ": lower --requests or --prompt-tokens"
        )
    return found


def _limit_host_memory(settings: Any, load: Load) -> None:
    """Give the library's cache what the requests need: of the host's memory it takes nearly all."""
    # Up to transformers 5.17 a page is called a block.
    size = getattr(settings, "page_size", None) or settings.block_size
    settings.num_blocks = (load.longest // size + 2) * len(load.prompts)
    settings.max_batch_tokens = max(256, load.longest)


def versions() -> dict[str, str]:
    """Return the releases of what takes part, FlashAttention under the names it is installed by."""
    holders = packages_distributions()
    names = [*_PACKAGES, *(name for module in _FLASH for name in holders.get(module, ()))]
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
