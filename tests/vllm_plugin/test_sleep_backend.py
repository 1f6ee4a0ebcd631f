# SPDX-License-Identifier: Apache-2.0
"""vLLM's sleep for KV memory alone, by vLLM's own factory and a worker in place of its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_memory import PAGE
from test_shared_row_memory import BLOCKS, lease, make_memory

from pyvattn import UnsupportedError
from pyvattn.integrations import vllm as plugin
from pyvattn.integrations.vllm.worker import RowWorker

backends = pytest.importorskip(
    "vllm.device_allocator.sleep_mode_backend", reason="vLLM is not installed here: make test-vllm"
)


@pytest.fixture
def memory(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(folder))
    made = make_memory(lease("one"))
    yield made
    made.close_all()


@pytest.fixture
def backend():
    plugin.register()
    plugin.register()  # as vLLM may do in one process
    asked = SimpleNamespace(sleep_mode_backend="pyvattn")
    return backends.SleepModeBackendFactory.create_backend(asked)


class VllmWorker:
    """What vLLM's worker for a GPU does when it sleeps and wakes, without the GPU."""

    def __init__(self, backend, memory):
        self._backend = backend
        self.model_runner = SimpleNamespace(pyvattn_memory=memory)
        self.freed = None

    @property
    def sleep_mode_backend(self):
        return self._backend

    def sleep(self, level=1):
        memory = self.model_runner.pyvattn_memory
        before = memory.lease.held
        self.sleep_mode_backend.suspend(level)
        # vLLM asserts that this is not below 0.
        self.freed = before - memory.lease.held

    def wake_up(self, tags=None):
        self.sleep_mode_backend.resume(tags)


class Worker(RowWorker, VllmWorker):
    """Ours over it, without vLLM's config."""

    def __init__(self, backend, memory):
        VllmWorker.__init__(self, backend, memory)


@pytest.mark.parametrize("level", [1, 2])
def test_kv_goes_before_vllm_looks_and_comes_back_as_it_is_needed(
    backend,
    memory,
    level,
):
    ids = list(range(1, BLOCKS))
    assert memory.back(ids)
    memory.unback(ids)
    assert memory.lease.held == BLOCKS * PAGE
    worker = Worker(backend, memory)
    worker.sleep(level)
    assert backend.state() == "SUSPENDED"
    assert worker.freed == (BLOCKS - 1) * PAGE
    assert memory.lease.held == PAGE
    assert not memory.back(ids)
    worker.wake_up(["weights"])
    assert backend.state() == "SUSPENDED"
    assert not memory.back(ids)
    for _ in range(2):
        worker.wake_up(["kv_cache"])
    assert backend.state() == "RUNNING"
    assert memory.back(ids)


def test_what_is_discarded_is_kv_and_nothing_else(backend, memory):
    worker = Worker(backend, memory)
    with pytest.raises(RuntimeError, match="kv_cache alone, not weights: use cumem"):
        worker.sleep_mode_backend.discard(("weights",))
    assert backend.state() == "RUNNING"
    worker.sleep_mode_backend.discard(("kv_cache",))
    assert backend.state() == "SUSPENDED"


def test_what_else_vllm_has_in_place_outlives_it(backend):
    kind = type(backend)
    assert kind.preserves_communicators()
    assert kind.preserves_compiled_artifacts()
    assert kind.preserves_graphs_with_communicators()


def test_without_our_worker_there_is_nothing_to_put_away(backend):
    for call in (backend.suspend, backend.resume):
        with pytest.raises(UnsupportedError, match=r"add that, or use cumem"):
            call()
