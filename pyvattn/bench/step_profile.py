# SPDX-License-Identifier: Apache-2.0
"""``bench transformers --profile``: where the time of a step goes, and the limit of each part.

Prompts are profiled until each request has its first token, then a few steps in which all decode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pyvattn.bench.engines import Ours
from pyvattn.bench.report import Measure, Setup
from pyvattn.bench.serving import Load
from pyvattn.bench.step_events import OTHER, PARTS, KernelEvent, names_of, part_of, seconds_by_part
from pyvattn.bench.step_limits import Rates, Tokens, measure_rates, work_of
from pyvattn.gpu_timing import require_torch
from pyvattn.spec import CacheSpec

_MOST_STEPS = 16


@dataclass(frozen=True)
class Phase:
    """So many steps of one kind: what ran, the seconds they took, and those spent on mapping."""

    steps: int
    events: list[KernelEvent]
    seconds: float
    waited: float

    def parts(
        self, model: Any, spec: CacheSpec, tokens: Tokens, rates: Rates
    ) -> dict[str, dict[str, Any]]:
        """Return of each part its seconds a step, its share, and its limit where it has one.

        ``tokens`` are those of a step.
        """
        spent = seconds_by_part(self.events, self.seconds, self.waited)
        total = sum(spent.values())
        works = work_of(model, spec, tokens)
        found: dict[str, dict[str, Any]] = {}
        for part in PARTS:
            found[part] = {
                "seconds": spent[part] / self.steps,
                "share": spent[part] / total,
                "kernels": names_of(self.events, part),
            }
            if part in works:
                least, by = works[part].least(rates)
                found[part] |= {"least_seconds": least, "limited_by": by}
        return found


def profile(ours: Ours, loads: tuple[Load, Load], device: str) -> Iterator[Measure | Setup]:
    """Yield what a step is made of; the first of ``loads`` warms up."""
    torch = require_torch()
    model = ours.engine.model
    rates = measure_rates(torch, device, model.dtype)
    ours.run(loads[0])
    phases = {
        name: phase.parts(model, ours.cache.spec, tokens, rates)
        for name, (phase, tokens) in _phases(torch, ours, loads[1], device).items()
    }
    yield Setup("profile", {"rates": asdict(rates), "phases": phases, "ours": ours.note})
    yield Measure("a copy reads and writes", rates.copied / 1e9, "GB/s")
    yield Measure("a product of matrices", rates.operations / 1e12, "TFLOP/s")
    for name, parts in phases.items():
        for part, found in parts.items():
            yield Measure(f"{name}: {part}", 1e3 * found["seconds"], "ms", note=_limit(found))
        for part, found in parts.items():
            yield Measure(f"{name}: {part}, share", 100 * found["share"], "%")


def _limit(found: dict[str, Any]) -> str:
    if "least_seconds" not in found:
        return ""
    return f"at least {1e3 * found['least_seconds']:.3g} ms by {found['limited_by']}"


def _phases(torch: Any, ours: Ours, load: Load, device: str) -> dict[str, tuple[Phase, Tokens]]:
    requests = ours.submit(load)
    count, length = len(requests), len(load.prompts[0])

    def prompts_done() -> bool:
        return all(request.output for request in requests)

    total = count * length
    phase = _run(torch, ours, device, prompts_done)
    # Every query meets half of its prompt on average.
    each = (total, total, total * length / 2, count)
    found = {"a step of prompts": (phase, Tokens(*(value / phase.steps for value in each)))}
    # The last tokens are read a step later than they are computed.
    left = min(_MOST_STEPS, load.new_tokens - max(len(each.output) for each in requests) - 1)
    if left > 0:
        begun = sum(length + len(each.output) for each in requests)
        done = iter(range(left))
        phase = _run(torch, ours, device, lambda: next(done, None) is None)
        read = begun + count * (phase.steps + 1) / 2
        found["a step of decode"] = phase, Tokens(count, read, read, count)
    ours.finish()
    return found


def _run(torch: Any, ours: Ours, device: str, done: Callable[[], bool]) -> Phase:
    """Run steps until ``done``."""
    from torch.profiler import ProfilerActivity

    on_gpu = device != "cpu"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    wait()
    steps, waited = 0, ours.cache.stats().map_seconds_blocking
    with torch.profiler.profile(activities=activities) as profiler:
        began = time.perf_counter()
        while not done():
            ours.engine.step()
            steps += 1
        wait()
        seconds = time.perf_counter() - began
    waited = ours.cache.stats().map_seconds_blocking - waited
    return Phase(steps, list(kernels_of(profiler.events(), on_gpu)), seconds, waited)


def kernels_of(events: Any, on_gpu: bool) -> Iterator[KernelEvent]:
    """Yield the kernels among torch's profiler events.

    On the CPU: the outermost operators whose name says what they are for, and what calls no other.
    """
    for event in events:
        if on_gpu:
            if str(event.device_type).endswith("CUDA") and not event.is_user_annotation:
                yield _kernel(event)
        elif event.cpu_parent is None:
            yield from _operators(event)


def _operators(event: Any) -> Iterator[KernelEvent]:
    if part_of(event.name) != OTHER or not event.cpu_children:
        yield _kernel(event)
        return
    for child in event.cpu_children:
        yield from _operators(child)


def _kernel(event: Any) -> KernelEvent:
    return KernelEvent(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
