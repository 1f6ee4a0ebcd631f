# SPDX-License-Identifier: Apache-2.0
"""Runner V2, which needs a GPU, on a stand-in that makes its KV cache as vLLM does."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from test_tables import StandInV2

from pyvattn import ConfigError, UnsupportedError, _native
from pyvattn.integrations.vllm import runners
from pyvattn.integrations.vllm.runners import RunnerV2, adopt_runner

PAGE = 64 << 10


class Backend:
    """Heads behind tokens, K and V of a head side by side: FlashAttention's."""

    @staticmethod
    def get_name():
        return "FLASH_ATTN"

    @staticmethod
    def get_kv_cache_shape(blocks, tokens, heads, size, cache_dtype_str):
        return (blocks, heads, tokens, 2 * size)

    @staticmethod
    def get_kv_cache_stride_order():
        return (0, 2, 1, 3)


class StandInConnector:
    """``vllm.v1.worker.gpu.kv_connector.KVConnector``."""

    def pre_forward(self, scheduler_output, *arguments, **options):
        scheduler_output.seen.append((arguments, options))


NO_CONNECTOR = StandInConnector()


class StandInRunner:
    """``vllm.v1.worker.gpu.model_runner.GPUModelRunner``, of a model of two layers."""

    def __init__(self, style, *, late=False, home=False):
        self.style = style
        self.device = torch.device("cpu")
        self.max_model_len = 256
        self.kernel_block_sizes = [64]
        self.layers = {"layer.0": None, "layer.1": None}
        self.compilation_config = types.SimpleNamespace(static_forward_context=self.layers)
        self.vllm_config = types.SimpleNamespace(
            additional_config={"pyvattn": {"late_binding": late, "home_view": home}},
            cache_config=types.SimpleNamespace(cache_dtype="auto"),
            scheduler_config=types.SimpleNamespace(max_num_seqs=2),
            compilation_config=self.compilation_config,
            kv_transfer_config=None,
        )
        self.req_states = types.SimpleNamespace(req_id_to_index={"a": 0, "b": 1})
        self.removed = []
        # Backends and names of layers, where they are not one backend's.
        self.groups = []

    def initialize_kv_cache(self, kv_cache_config):
        self.kv_cache_config = kv_cache_config
        groups = self.groups or [(Backend, list(self.layers))]
        self.attn_groups = [
            [types.SimpleNamespace(backend=each, layer_names=names) for each, names in groups]
        ]
        self.block_tables = StandInV2()
        self.kv_connector = NO_CONNECTOR
        module = sys.modules["vllm.v1.worker.gpu.model_runner"]
        self.kv_caches = []
        if self.style == "0.26":
            module.init_kv_cache(self.kv_caches, self.layers, kv_cache_config, self.attn_groups)
        else:
            made = module.init_kv_cache(self.layers, kv_cache_config, self.device, block_tables=1)
            self.kv_caches = list(made.values())

    def add_requests(self, scheduler_output):
        for index, new in enumerate(scheduler_output.scheduled_new_reqs):
            self.block_tables.append_block_ids(index, new.block_ids, overwrite=True)

    def run(self, *arguments, **options):
        """Let the connector know that a forward follows."""
        scheduler_output = types.SimpleNamespace(seen=[])
        self.kv_connector.pre_forward(scheduler_output, *arguments, **options)
        return scheduler_output.seen

    def finish_requests(self, scheduler_output):
        for req_id in scheduler_output.preempted_req_ids:
            self._remove_request(req_id)

    def _remove_request(self, req_id):
        self.removed.append(req_id)
        return True


@pytest.fixture
def vllm_modules(monkeypatch):
    model_runner = types.ModuleType("vllm.v1.worker.gpu.model_runner")
    model_runner.init_kv_cache = "vLLM's own"
    utils = types.ModuleType("vllm.v1.worker.utils")

    def bind_kv_cache(tensors, layers, caches, modules):
        layers.update(tensors)
        caches.extend(tensors.values())

    utils.bind_kv_cache = bind_kv_cache
    monkeypatch.setitem(sys.modules, model_runner.__name__, model_runner)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    spec = types.SimpleNamespace(num_kv_heads=2, head_size=64, block_size=64, dtype=torch.bfloat16)
    monkeypatch.setattr(runners, "check_groups", lambda config, shared, shares: [spec])
    monkeypatch.setattr(runners, "_shared_layers", lambda runner: [])
    return model_runner


@pytest.mark.parametrize("style", ["0.26", "0.32"])
def test_v2_gets_its_tensors_from_rows_and_lets_go_of_those_that_end(vllm_modules, style):
    runner = StandInRunner(style)
    adopt_runner(runner, RunnerV2, lambda name, page, device: _native.make_driver(name, page))
    runner.initialize_kv_cache(cache_config())
    memory = runner.pyvattn_memory
    assert vllm_modules.init_kv_cache == "vLLM's own"
    assert len(runner.kv_caches) == 2
    # Two rows for each of two requests and the null row, of four blocks each.
    assert runner.layers["layer.1"].shape == (5 * 4, 2, 64, 128)

    runner.block_tables.append_block_ids(0, ([3, 4],), overwrite=True)
    runner.run()
    first, second = runner.block_tables.tables[0]
    runner.layers["layer.0"][second].fill_(2)
    assert not runner.layers["layer.1"][second].any()
    assert not runner.layers["layer.0"][first].any()

    runner._remove_request("a")
    assert memory.stats()["open_rows"] == 0
    runner._remove_request("unknown")
    assert runner.removed == ["a", "unknown"]
    memory.close_all()


@pytest.mark.parametrize(("name", "by_table"), [("TRITON_ATTN", True), ("CUSTOM", False)])
def test_v2_only_backends_with_a_table_leave_null_blocks_out(
    vllm_modules, monkeypatch, name, by_table
):
    monkeypatch.setattr(Backend, "get_name", lambda: name)
    runner = StandInRunner("0.32")
    adopt_runner(runner, RunnerV2, lambda name, page, device: _native.make_driver(name, page))
    runner.initialize_kv_cache(cache_config())
    assert runner.pyvattn_memory.reads_by_table is by_table
    runner.pyvattn_memory.close_all()


def test_v2_a_backend_that_reads_no_rows_is_refused_before_memory_is_taken(
    vllm_modules, monkeypatch
):
    monkeypatch.setattr(Backend, "get_name", lambda: "FLEX_ATTENTION")
    runner = StandInRunner("0.32")
    adopt_runner(runner, RunnerV2, lambda *_: pytest.fail("a driver was opened"))
    with pytest.raises(UnsupportedError, match="FLEX_ATTENTION: set --attention-backend CUSTOM"):
        runner.initialize_kv_cache(cache_config())


def test_v2_a_draft_model_is_refused_before_memory_is_taken(vllm_modules):
    runner = StandInRunner("0.32")
    adopt_runner(runner, RunnerV2, lambda *_: pytest.fail("a driver was opened"))
    with pytest.raises(UnsupportedError, match=r"draft\.0 has .*VLLM_USE_V2_MODEL_RUNNER=0"):
        runner.initialize_kv_cache(cache_config("draft.0"))


def cache_config(*drafting):
    """A ``KVCacheConfig`` of the model's two layers and of those that draft."""
    group = types.SimpleNamespace(layer_names=["layer.0", "layer.1", *drafting])
    return types.SimpleNamespace(num_blocks=10, kv_cache_groups=[group])


def test_v2_what_is_preempted_is_saved_while_it_has_its_row(vllm_modules, monkeypatch):
    saved = []

    class Connector:
        def use_rows(self, rows, row_of, clock):
            self.row_of = row_of

        def handle_preemptions(self, orders):
            saved.extend((req_id, self.row_of(req_id)) for req_id in orders)

    connector = Connector()
    monkeypatch.setattr(runners, "_connector", lambda runner: connector)
    runner = StandInRunner("0.32")
    adopt_runner(runner, RunnerV2, lambda name, page, device: _native.make_driver(name, page))
    runner.initialize_kv_cache(cache_config())
    runner.block_tables.append_block_ids(0, ([3, 4],), overwrite=True)
    (row,) = set(runner.pyvattn_memory.rows.open_rows()) - {0}
    step = types.SimpleNamespace(preempted_req_ids={"a"}, kv_connector_metadata=["a", "unknown"])
    runner.finish_requests(step)
    assert saved == [("a", row), ("unknown", None)]
    assert connector.row_of("a") is None
    runner.finish_requests(types.SimpleNamespace(preempted_req_ids=(), kv_connector_metadata=None))
    runner.pyvattn_memory.close_all()


def new_requests(*requests):
    """What the scheduler says of requests, each with its blocks and tokens from the cache."""
    return types.SimpleNamespace(
        scheduled_new_reqs=[
            types.SimpleNamespace(block_ids=(blocks,), num_computed_tokens=computed)
            for blocks, computed in requests
        ]
    )


def test_v2_maps_are_waited_for_right_before_the_model_runs(vllm_modules):
    runner, other = StandInRunner("0.32"), StandInRunner("0.32")
    for each in (runner, other):
        adopt_runner(each, RunnerV2, lambda name, page, device: _native.make_driver(name, page))
        each.initialize_kv_cache(cache_config())
    runner.block_tables.append_block_ids(0, ([3, 4],), overwrite=True)
    assert (runner.pyvattn_memory.stats()["waits"], len(other.run())) == (0, 1)
    assert runner.run("batch", attn_metadata="metadata") == [
        (("batch",), {"attn_metadata": "metadata"})
    ]
    assert runner.pyvattn_memory.stats()["waits"] == 1
    # vLLM has one connector for every runner without one.
    assert type(NO_CONNECTOR) is StandInConnector
    assert other.pyvattn_memory.stats()["waits"] == 0
    for each in (runner, other):
        each.pyvattn_memory.close_all()


def test_v2_with_late_binding_takes_fresh_blocks_alone_for_empty(vllm_modules):
    runner = StandInRunner("0.32", late=True)
    adopt_runner(runner, RunnerV2, lambda name, page, device: _native.make_driver(name, page))
    runner.initialize_kv_cache(cache_config())
    memory = runner.pyvattn_memory
    layer = runner.layers["layer.1"]
    # Rows of four blocks each: five of requests, and three that map each block for good.
    assert layer.shape == ((5 + 3) * 4, 2, 64, 128)

    runner.add_requests(new_requests(([1, 2], 0)))
    runner.run()
    for value, place in enumerate(runner.block_tables.tables[0], 1):
        layer[place].fill_(value)
    runner._remove_request("a")
    runner.run()
    memory.reset_stats()

    runner.add_requests(new_requests(([1, 3], 64), ([2, 4], 64)))
    runner.run()
    first, second = (runner.block_tables.tables[index] for index in (0, 1))
    assert (layer[first[0]] == 1).all()
    assert (layer[second[0]] == 2).all()
    # 3 got the page of 2 for its own, in the row of the first request.
    assert memory.stats()["pages_copied"] == 1
    memory.close_all()


def test_v2_layers_that_draft_with_heads_of_their_own_have_their_part_of_each_block(vllm_modules):
    runner = StandInRunner("0.26")
    runner.groups = [(Backend, ["layer.0"]), (Backend, ["layer.1"])]
    adopt_runner(runner, RunnerV2, lambda name, page, device: _native.make_driver(name, page))
    runner.initialize_kv_cache(cache_config())
    assert runner.pyvattn_memory.pool.geometry.layers_per_arena == 2
    target, drafting = runner.layers["layer.0"], runner.layers["layer.1"]
    # The null block, of which each layer has its own half.
    target[0].fill_(1)
    drafting[0].fill_(2)
    assert (target[0] == 1).all()
    assert (drafting[0] == 2).all()
    runner.pyvattn_memory.close_all()


def test_v2_layers_of_several_backends_are_refused(vllm_modules):
    runner = StandInRunner("0.26")
    other = type("Other", (Backend,), {"get_name": staticmethod(lambda: "TRITON_ATTN")})
    runner.groups = [(Backend, ["layer.0"]), (other, ["layer.1"])]
    adopt_runner(runner, RunnerV2, lambda *_: pytest.fail("a driver was opened"))
    with pytest.raises(UnsupportedError, match="backends, FLASH_ATTN, TRITON_ATTN: set"):
        runner.initialize_kv_cache(cache_config())


def test_v2_with_a_home_view_tells_a_connector_of_blocks_by_their_ids(vllm_modules):
    runner = StandInRunner("0.32", home=True)
    adopt_runner(runner, RunnerV2, lambda name, page, device: _native.make_driver(name, page))
    runner.initialize_kv_cache(cache_config())
    registered, layer = runner.kv_caches[1], runner.layers["layer.1"]
    # Ten blocks in three rows of four, and four rows of requests.
    assert registered.shape == (10, 2, 64, 128)
    assert layer.shape == (7 * 4, 2, 64, 128)
    # As vLLM has a layer of a block, though FlashAttention would take layers between tokens.
    assert registered[3].permute(1, 0, 2).is_contiguous()
    assert runner.kv_caches[0].storage_offset() == 0

    runner.block_tables.append_block_ids(0, ([3, 4],), overwrite=True)
    runner.run()
    first, second = runner.block_tables.tables[0]
    registered[4].fill_(2)
    assert (layer[second] == 2).all()
    layer[first].fill_(1)
    assert (registered[3] == 1).all()
    assert (layer[3] == 1).all()
    runner.pyvattn_memory.close_all()


def test_v2_a_home_view_of_arenas_with_a_part_of_the_layers_is_refused(vllm_modules):
    runner = StandInRunner("0.32", home=True)
    runner.layers.update({"layer.2": None, "layer.3": None})
    runner.vllm_config.additional_config["pyvattn"]["page_size"] = PAGE
    adopt_runner(runner, RunnerV2, lambda *_: pytest.fail("a driver was opened"))
    # Two layers of a block would fill a page.
    with pytest.raises(ConfigError, match=r"blocks of 64 tokens.*use --block-size 32 or 128"):
        runner.initialize_kv_cache(cache_config())
