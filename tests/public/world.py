# SPDX-License-Identifier: Apache-2.0
"""One of everything that the public calls of pyvattn take, small enough to make for each try."""

from __future__ import annotations

import importlib
import importlib.util
from array import array
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import make_llama, torch

import pyvattn
from pyvattn import _native
from pyvattn.attention import FlexKernel, KVScales, Problem
from pyvattn.bench import BENCHES, Measure, Report
from pyvattn.bench.timing import Timing
from pyvattn.calls import open_traced, read_calls, write_calls
from pyvattn.detect import Machine, detect_drivers
from pyvattn.integrations.transformers import Engine, VAttentionCache, spec_for
from pyvattn.machine import MadeOn
from pyvattn.planner import Calibration, default_costs, plan, plan_parts
from pyvattn.prefix import PrefixIndex
from pyvattn.replay import ContiguousAllocator, PagedAllocator, StaticAllocator
from pyvattn.shared import create_ledger
from pyvattn.traces import synthetic_trace

SPEC = pyvattn.CacheSpec(2, 2, 8, "float32", max_slots=4, max_tokens=2048, guard_tokens=0)
HOST = {"device": "cpu", "memory": "4MiB", "page_size": "64K", "layout": "layer"}
MODEL = make_llama(num_hidden_layers=2)
PROMPT = [5, 6, 7]


class World:
    """What a valid call is made of; :meth:`close` closes everything that was opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()

    def close(self) -> None:
        self._open.close()

    # --- what calls are made on ---

    @cached_property
    def cache(self) -> pyvattn.KVCache:
        return self._open.enter_context(pyvattn.KVCache(SPEC, **HOST))

    @cached_property
    def slot(self) -> Any:
        slot = self.cache.acquire(5)
        self.cache.step({slot: 5})
        return slot

    @cached_property
    def pool(self) -> pyvattn.BlockPool:
        return self._open.enter_context(pyvattn.BlockPool(SPEC, **HOST))

    @cached_property
    def held(self) -> list[int]:
        return self.pool.allocate(2)

    @cached_property
    def rows(self) -> pyvattn.RowMap:
        return pyvattn.RowMap(self.pool)

    @cached_property
    def row(self) -> int:
        row = self.rows.open(self.held[:1])
        self.rows.flush()
        return row

    @cached_property
    def model_cache(self) -> pyvattn.KVCache:
        spec = spec_for(MODEL, max_slots=4, max_tokens=64)
        return self._open.enter_context(pyvattn.KVCache(spec, device="cpu", memory="64MiB"))

    @cached_property
    def float8(self) -> pyvattn.KVCache:
        spec = pyvattn.CacheSpec(1, 2, 8, "float8_e4m3fn", max_slots=1, max_tokens=64)
        return self._open.enter_context(pyvattn.KVCache(spec, device="cpu", memory="8MiB"))

    @cached_property
    def index(self) -> PrefixIndex:
        return PrefixIndex(self.cache)

    @cached_property
    def admitted(self) -> _native.Slot:
        return self.index.admit(PROMPT).slot

    @cached_property
    def engine(self) -> Engine:
        return self._open.enter_context(Engine(MODEL, self.model_cache))

    @cached_property
    def generated(self) -> VAttentionCache:
        """A cache with two rows of three tokens."""
        cache = VAttentionCache.for_model(MODEL, max_batch=4, max_tokens=64, memory="64MiB")
        self._open.enter_context(cache)
        with torch.no_grad():
            MODEL(torch.tensor([PROMPT, PROMPT]), past_key_values=cache)
        return cache

    @cached_property
    def allocator(self) -> ContiguousAllocator:
        made = ContiguousAllocator(SPEC, 4 << 20, 65536, "layer")
        self._open.callback(made.close)
        return made

    @cached_property
    def paged(self) -> PagedAllocator:
        return PagedAllocator(SPEC, 4 << 20)

    @cached_property
    def static(self) -> StaticAllocator:
        return StaticAllocator(SPEC, 4 << 20)

    @cached_property
    def lease(self) -> pyvattn.SharedMemory:
        self.ledger()
        return self._open.enter_context(pyvattn.SharedMemory("cpu", name="engine"))

    def ledger(self) -> dict[str, str]:
        """Make the ledger of the host, where there is none yet; return who means that."""
        create_ledger("cpu", budget="1GiB")
        return {"device": "cpu"}

    @cached_property
    def new_token(self) -> Any:
        """K or V of one more token of both rows, in a forward pass that has begun."""
        self.generated.mask(2, 1, None, 0)
        return torch.ones(2, 2, 1, 8)

    @cached_property
    def calls(self) -> Path:
        """A file with the calls of a cache that was opened and closed."""
        path, driver = self.folder / "calls.jsonl", open_traced()
        pyvattn.KVCache.on_driver(SPEC, driver, layout="layer", memory="4MiB").close()
        write_calls(path, driver)
        return path

    @cached_property
    def trace(self) -> Any:
        return synthetic_trace(3)

    @cached_property
    def plan(self) -> Any:
        return plan(SPEC, driver="host")

    @cached_property
    def reports(self) -> Any:
        return detect_drivers(machine=Machine())

    @cached_property
    def problem(self) -> Problem:
        k, v = self.cache.layer(0)
        q = torch.ones(1, 1, 2, 8)
        return Problem(q, k, v, [self.slot.index], [5], True, 1.0)

    @cached_property
    def stateful(self) -> pyvattn.KVCache:
        state = pyvattn.StateGroup([0], {"conv": ((3, 8), "float32")})
        spec = pyvattn.CacheSpec(1, 2, 8, max_slots=1, max_tokens=64, states=[state])
        return self._open.enter_context(pyvattn.KVCache(spec, device="cpu", memory="8MiB"))

    def receiver(self, kind: type, call: str) -> Any:
        """Return an object of ``kind`` on which ``call`` can be called."""
        if call == "KVCache.state":
            return self.stateful
        return {
            "KVCache": lambda: self.cache,
            "BlockPool": lambda: self.pool,
            "RowMap": lambda: self.rows,
            "CacheSpec": lambda: SPEC,
            "StateGroup": lambda: pyvattn.StateGroup([0], {"conv": ((3, 8), "float32")}),
            "Engine": lambda: self.engine,
            "PrefixIndex": lambda: self.index,
            "VAttentionCache": lambda: self.generated,
            "ContiguousAllocator": lambda: self.allocator,
            "PagedAllocator": lambda: self.paged,
            "StaticAllocator": lambda: self.static,
            "Calibration": lambda: Calibration("by hand", {}),
            "DriverCosts": lambda: default_costs("host"),
            "Report": lambda: Report("core", [Measure("a", 1.0, "s")]),
            "Trace": lambda: self.trace,
            "FlexKernel": FlexKernel,
            "Kernel": FlexKernel,
            "KVScales": lambda: KVScales([torch.ones(2)], [torch.ones(2)]),
            "SharedMemory": lambda: self.lease,
        }[kind.__name__]()

    # --- what they take, by the name of the argument; "call.argument" where it differs ---

    def valid(self, call: str, name: str) -> Any:
        """Return a good value for an argument that has to be given."""
        values = _VALID.get(f"{call}.{name}", _VALID.get(name))
        if values is None and call in RECORDS:
            return 1
        if values is None:
            raise LookupError(f"tests/public/world.py knows no value for {name} of {call}")
        return values(self)


_INT64 = "q"


def saved_scales(folder):
    """Return the path of a file of scales."""
    KVScales([torch.ones(2)], [torch.ones(2)]).save(folder / "scales.json")
    return folder / "scales.json"


_VALID: dict[str, Any] = {
    "spec": lambda w: SPEC,
    "memory": lambda w: "4MiB",
    "layers": lambda w: 2,
    "LayerGroup.layers": lambda w: [0, 1],
    "StateGroup.layers": lambda w: [0, 1],
    "StateGroup.tensors": lambda w: {"conv": ((3, 8), "float32")},
    "planner.guarded_for.kernel": lambda w: "flash-attn-3",
    "planner.KernelChoice.name": lambda w: "flash-attn-3",
    "planner.KernelChoice.guard_tokens": lambda w: 192,
    "planner.KernelChoice.plans": lambda w: plan_parts(SPEC, driver="cumem"),
    "planner.KernelChoice.request_bytes": lambda w: 1e6,
    "planner.KernelChoice.decode": lambda w: 1.0,
    "planner.KernelChoice.prefill": lambda w: 1.0,
    "plans": lambda w: plan_parts(SPEC, driver="host"),
    "planner.WindowChoice.ring": lambda w: True,
    "planner.WindowChoice.window": lambda w: 64,
    "planner.WindowChoice.ring_tokens": lambda w: 128,
    "planner.WindowChoice.calls": lambda w: 0.5,
    "planner.WindowChoice.trim_share": lambda w: 0.6,
    "planner.WindowChoice.reason": lambda w: "a ring of 128 tokens",
    "planner.held_bytes.geometries": lambda w: [SPEC.geometry("layer", 65536)],
    "planner.held_bytes.private_guard": lambda w: True,
    "integrations.transformers.VAttentionCache.mask.window": lambda w: 0,
    "kv_heads": lambda w: 2,
    "head_dim": lambda w: 8,
    "driver": lambda w: "host",
    "KVCache.on_driver.driver": lambda w: _native.make_driver("host", 65536),
    "BlockPool.on_driver.driver": lambda w: _native.make_driver("host", 65536),
    "layout": lambda w: "layer",
    "page_size": lambda w: 65536,
    "tokens": lambda w: 3,
    "count": lambda w: 1,
    "blocks": lambda w: w.held,
    "RowMap.extend.blocks": lambda w: w.held[1:],
    "RowMap.reclaim.blocks": lambda w: 1,
    "pool": lambda w: w.pool,
    "row": lambda w: w.row,
    "slot": lambda w: w.slot,
    "length": lambda w: 3,
    "lengths": lambda w: {w.slot: 6},
    "KVCache.step_array.rows": lambda w: np.array([w.slot.index]),
    "KVCache.step_array.lengths": lambda w: np.array([6]),
    "calls.replay_calls.trace": lambda w: read_calls(w.calls),
    "calls.read_calls.path": lambda w: w.calls,
    "calls.write_calls.path": lambda w: w.folder / "written.jsonl",
    "calls.write_calls.driver": lambda w: open_traced(),
    "port": lambda w: 0,
    "index": lambda w: 0,
    "after": lambda w: None,
    "device": lambda w: 0,
    "config": lambda w: MODEL.config.to_dict(),
    "ranks": lambda w: 2,
    # attention
    "problem": lambda w: w.problem,
    "q": lambda w: w.problem.q,
    "k": lambda w: torch.ones(1, 2, 8),
    "v": lambda w: torch.ones(1, 2, 8),
    "cache": lambda w: w.cache,
    "layer": lambda w: 0,
    "slots": lambda w: [w.slot.index],
    "attention.append.slots": lambda w: torch.tensor([w.slot.index]),
    "attention.append.positions": lambda w: torch.tensor([4]),
    "attention.attend.lengths": lambda w: [5],
    "attention.Problem.lengths": lambda w: [5],
    "attention.KVScales.k": lambda w: [torch.ones(2)],
    "attention.KVScales.v": lambda w: [torch.ones(2)],
    "attention.KVScales.calibrate.dtype": lambda w: torch.float8_e4m3fn,
    "attention.KVScales.calibrate.k": lambda w: torch.ones(1, 2, 8),
    "attention.KVScales.calibrate.v": lambda w: torch.ones(1, 2, 8),
    "attention.KVScales.save.path": lambda w: w.folder / "scales.json",
    "attention.KVScales.load.path": lambda w: saved_scales(w.folder),
    "attention.KVScales.load.device": lambda w: "cpu",
    "attention.set_scales.cache": lambda w: w.float8,
    "attention.set_scales.scales": lambda w: KVScales([torch.ones(2)], [torch.ones(2)]),
    "causal": lambda w: True,
    "scale": lambda w: 1.0,
    "kernel": lambda w: FlexKernel("of a test"),
    # transformers
    "model": lambda w: MODEL,
    "kv": lambda w: w.model_cache,
    "integrations.transformers.Engine.cache": lambda w: w.model_cache,
    "max_batch": lambda w: 2,
    "max_slots": lambda w: 2,
    "max_tokens": lambda w: 64,
    "prompt": lambda w: PROMPT,
    "prompts": lambda w: [PROMPT],
    "integrations.transformers.generate_batch.max_new_tokens": lambda w: 2,
    "max_new_tokens": lambda w: 2,
    "request": lambda w: w.engine.submit(PROMPT, 2),
    "most": lambda w: 2,
    "batch_size": lambda w: 2,
    "queries": lambda w: 1,
    "padding_mask": lambda w: None,
    "tokens_to_remove": lambda w: -1,
    "beam_idx": lambda w: [1, 0],
    "indices": lambda w: [1, 0],
    "repeats": lambda w: 2,
    "query_length": lambda w: 1,
    "layer_idx": lambda w: 0,
    "key_states": lambda w: w.new_token,
    "value_states": lambda w: w.new_token,
    "n": lambda w: 2,
    # prompts that begin alike
    "keeper": lambda w: w.index,
    "hit": lambda w: 3,
    "prefix.PrefixIndex.publish.slot": lambda w: w.admitted,
    "prefix.PrefixIndex.publish.tokens": lambda w: PROMPT,
    "prefix.PrefixIndex.next_snapshot.slot": lambda w: w.admitted,
    "prefix.PrefixIndex.next_snapshot.tokens": lambda w: 0,
    "prefix.PrefixIndex.release.slot": lambda w: w.admitted,
    "prefix.PrefixIndex.forget.slot": lambda w: w.admitted,
    # planner, detection, calibration
    "batch": lambda w: 2,
    "here": lambda w: MadeOn(),
    "extent": lambda w: 65536,
    "extents": lambda w: 2.0,
    "path": lambda w: w.folder / "calibration.json",
    "traces.read_trace.path": lambda w: w.folder / "trace.csv",
    "calibrate.write_calibration.path": lambda w: w.folder / "written.json",
    "reports": lambda w: w.reports,
    "detect.auto_driver.device": lambda w: "cpu",
    "detect.choose_auto.device": lambda w: "cpu",
    "status": lambda w: 2,
    "constants": lambda w: [],
    "content": lambda w: {},
    "calibrate.to_share.content": lambda w: pyvattn.calibrate.describe([]),
    "calibrate.measure_driver.name": lambda w: "host",
    "calibrate.measure_driver.options": lambda w: pyvattn.calibrate.Options(rounds=2),
    # replay, traces and benches
    "memory_limit": lambda w: 4 << 20,
    "trace": lambda w: w.trace,
    "allocator": lambda w: w.allocator,
    "rows": lambda w: array(_INT64, [w.allocator.admit(3)]),
    "where": lambda w: w.folder,
    "KVCache.restore.source": lambda w: w.cache.offload(w.slot),
    "header": lambda w: w.cache.dense_views(w.slot).header,
    "swap.SlotHeader.length": lambda w: 10,
    "swap.SlotHeader.fronts": lambda w: (0,),
    "swap.SlotHeader.token_bytes": lambda w: (1024,),
    "swap.SlotHeader.arenas": lambda w: (4,),
    # memory that processes share
    "timeout": lambda w: 0,
    "member": lambda w: w.lease.name,
    "budget": lambda w: "1GiB",
    "timing": lambda w: Timing(1.0, 1.0, 1.0, 1),
}
for _name in ("Contiguous", "Paged", "Static"):
    _VALID |= {
        f"replay.{_name}Allocator.step.rows": lambda w: array(_INT64, []),
        f"replay.{_name}Allocator.step.lengths": lambda w: array(_INT64, []),
    }
_VALID |= {
    "replay.ContiguousAllocator.release.row": lambda w: w.allocator.admit(3),
    "replay.PagedAllocator.release.row": lambda w: w.paged.admit(3),
    "replay.StaticAllocator.release.row": lambda w: w.static.admit(3),
    "cache.Stats.read.native": lambda w: w.cache._native.stats(),
}
for _bench in BENCHES.values():
    _module = importlib.import_module(_bench.module)
    _call = f"{_bench.module.removeprefix('pyvattn.')}.measure"
    _VALID[f"{_call}.options"] = lambda w, module=_module: module.Options()

# Plain records, which hold what they are given and check nothing.
RECORDS = {
    "attention.KernelInfo",
    "calls.CallCount",
    "calls.CallTrace",
    "bench.Bench",
    "bench.Measure",
    "bench.Measure.of",
    "bench.Report",
    "cache.Stats",
    "cuda.Device",
    "cuda.Memory",
    "detect.AutoChoice",
    "integrations.transformers.Preemptions",
    "detect.DriverReport",
    "planner.Calibration",
    "planner.Candidate",
    "planner.DriverCosts",
    "planner.Plan",
    "replay.Result",
    "rows.PoolStats",
    "swap.Offloaded",
    "swap.SlotViews",
    "shared.Ledger",
    "shared.Member",
    "traces.Request",
    "traces.Trace",
}

# Optional arguments that a call on this machine needs all the same.
GIVEN: dict[str, Any] = {
    # Each with a registry of its own: the process's takes them once.
    "metrics.register_metrics": lambda w: (
        {"registry": importlib.import_module("prometheus_client").CollectorRegistry()}
        if importlib.util.find_spec("prometheus_client")
        else {}
    ),
    "CacheSpec": lambda w: {"layers": 2, "kv_heads": 2, "head_dim": 8},
    "KVCache": lambda w: HOST,
    "BlockPool": lambda w: HOST,
    # A cache of 64 tokens: in a larger one a good request may take minutes.
    "integrations.transformers.generate_batch": lambda w: {
        "cache": w.model_cache,
        "max_new_tokens": 2,
    },
    "SharedMemory": lambda w: w.ledger(),
    "shared.ledger_path": lambda w: w.ledger(),
    "shared.create_ledger": lambda w: w.ledger(),
    "shared.reset_ledger": lambda w: w.ledger(),
    "detect.detect_drivers": lambda w: {"machine": Machine()},
}
