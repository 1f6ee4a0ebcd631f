# SPDX-License-Identifier: Apache-2.0
"""vLLM's sleep for KV memory alone, by vLLM's own factory and a worker in place of its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_memory import PAGE
from test_shared_row_memory import BLOCKS, lease, make_memory

from pyvattn import OutOfMemory, UnsupportedError
from pyvattn.integrations import vllm as plugin
from pyvattn.integrations.vllm import worker as worker_module
from pyvattn.integrations.vllm.worker import RowWorker

PATIENCE = 60

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

    def __init__(self, backend, memory, chosen="pyvattn"):
        self._backend = backend
        device = SimpleNamespace(type="cuda")
        self.model_runner = SimpleNamespace(pyvattn_memory=memory, device=device)
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(sleep_mode_backend=chosen))
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


class Vllm26Worker(VllmWorker):
    """As vLLM 0.26 reaches its backend."""

    sleep_mode_backend = None

    def _get_sleep_mode_backend(self):
        return self._backend

    def sleep(self, level=1):
        self._get_sleep_mode_backend().suspend(level)

    def wake_up(self, tags=None):
        self._get_sleep_mode_backend().resume(tags)


class Worker(RowWorker, VllmWorker):
    """Ours over it, without vLLM's config."""

    def __init__(self, *arguments):
        VllmWorker.__init__(self, *arguments)


class Worker26(RowWorker, Vllm26Worker):
    """The same over that."""

    def __init__(self, *arguments):
        Vllm26Worker.__init__(self, *arguments)


class Weights:
    """A backend that keeps weights on a device of so many bytes, of which neighbours use some."""

    def __init__(self, size, room):
        self.size, self.room, self.on_device = size, room, size

    def suspend(self, level):
        self.on_device = 0

    def resume(self, tags):
        if tags is None or "weights" in tags:
            assert self.size <= self.room(), "waking failed half way"
            self.on_device = self.size


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


def test_vllm_26_is_told_too_which_memory_it_gives_back(backend, memory):
    ids = list(range(1, BLOCKS))
    assert memory.back(ids)
    memory.unback(ids)
    worker = Worker26(backend, memory)
    worker.sleep()
    assert memory.lease.held == PAGE
    worker.wake_up()
    assert memory.back(ids)


class TestWeights:
    SIZE = 3 * PAGE

    @pytest.fixture
    def leased(self, tmp_path, monkeypatch):
        folder = tmp_path / "leased"
        folder.mkdir(mode=0o700)
        monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(folder))
        made = make_memory(lease("one", weights=self.SIZE))
        assert made.lease.held == self.SIZE + PAGE
        yield made
        made.close_all()
        made.lease.close()

    @pytest.fixture
    def neighbour(self, leased):
        with lease("two") as two:
            yield two

    @pytest.fixture
    def weights(self, leased, neighbour):
        return Weights(self.SIZE, lambda: BLOCKS * PAGE - neighbour.held)

    @pytest.mark.parametrize("level", [1, 2])
    @pytest.mark.parametrize("tags", [["weights"], None])
    def test_their_memory_is_lent_and_claimed_before_they_come_back(
        self, leased, neighbour, weights, level, tags
    ):
        worker = Worker(weights, leased, "cumem")
        worker.sleep(level)
        assert leased.lease.held == PAGE
        assert neighbour.wait_for((BLOCKS - 1) * PAGE, PATIENCE)
        assert neighbour.take(6 * PAGE)
        worker.wake_up(tags)
        assert weights.on_device == self.SIZE
        assert leased.lease.weights == self.SIZE
        assert leased.lease.held + neighbour.held <= BLOCKS * PAGE
        neighbour.return_bytes(neighbour.held)
        worker.wake_up(["kv_cache"])
        assert leased.lease.wait_for(3 * PAGE, PATIENCE)
        assert leased.back([1, 2, 3])

    def test_where_neighbours_make_no_room_it_sleeps_on(
        self, leased, neighbour, weights, monkeypatch
    ):
        worker = Worker(weights, leased, "cumem")
        worker.sleep()
        assert neighbour.wait_for((BLOCKS - 1) * PAGE, PATIENCE)
        assert neighbour.take((BLOCKS - 1) * PAGE)
        monkeypatch.setattr(worker_module, "_WAKE_S", 0)
        with pytest.raises(OutOfMemory, match="neighbours hold the rest"):
            worker.wake_up()
        assert weights.on_device == 0
        assert leased.lease.held == PAGE
        assert not leased.back([1])
        # It asks no more.
        neighbour.return_bytes(2 * PAGE)
        assert neighbour.wait_for(2 * PAGE, PATIENCE)
        neighbour.return_bytes(neighbour.held)
        monkeypatch.setattr(worker_module, "_WAKE_S", PATIENCE)
        worker.wake_up()
        assert weights.on_device == self.SIZE

    def test_those_that_stay_on_the_device_stay_leased(self, backend, leased, neighbour):
        worker = Worker(backend, leased)
        worker.sleep()
        assert leased.lease.held == self.SIZE + PAGE
        assert not neighbour.wait_for((BLOCKS - 3) * PAGE, 0)
        assert neighbour.wait_for((BLOCKS - 4) * PAGE, PATIENCE)
        worker.wake_up()
        assert leased.lease.weights == self.SIZE

    def test_their_lease_outlives_the_rows(self, leased):
        leased.close_all()
        assert leased.lease.held == self.SIZE
        assert not leased.lease.closed


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
