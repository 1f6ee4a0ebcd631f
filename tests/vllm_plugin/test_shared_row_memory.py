# SPDX-License-Identifier: Apache-2.0
"""The KV memory of a worker under a lease, on the host driver and without vLLM."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_memory import PAGE, SIZES

from pyvattn import BlockError, ConfigError, DriverUnavailable, SharedMemory, _native
from pyvattn.integrations.vllm.build import build_memory
from pyvattn.integrations.vllm.layout import Paging
from pyvattn.integrations.vllm.shared_memory import SharedRowMemory

BLOCKS = 10


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(folder))


def lease(name, guarantee=0, weights=0):
    return SharedMemory(
        "cpu",
        budget=BLOCKS * PAGE,
        chunk_size=PAGE,
        name=name,
        guarantee=guarantee,
        weights=weights,
    )


def make_memory(lease):
    driver = _native.CheckedAdaptor(_native.make_driver("host", PAGE))
    return SharedRowMemory(SIZES, Paging(PAGE, 2), driver, background=False, lease=lease)


@pytest.fixture
def memory():
    memory = make_memory(lease("one"))
    yield memory
    memory.close_all()


def test_only_what_is_backed_is_held(memory):
    assert memory.lease.held == PAGE
    assert memory.back([3, 7])
    assert memory.lease.held == 3 * PAGE
    row = memory.open([7, 3])
    memory.join()
    memory.rows.arena(0)[row, : 2 * PAGE].fill_(1)
    with pytest.raises(BlockError, match="block 4 of vLLM's has no memory"):
        memory.open([4])


def test_more_than_there_is_backs_nothing(memory):
    assert not memory.back(list(range(1, BLOCKS + 1)))
    assert memory.lease.held == PAGE
    assert memory.back(list(range(1, BLOCKS)))


def test_what_a_row_maps_goes_when_the_row_is_closed(memory):
    assert memory.back([1, 2, 3, 4, 5, 6, 7, 8, 9])
    row = memory.open([1, 2, 3])
    memory.join()
    with lease("two") as neighbour:
        neighbour.want(4 * PAGE)
        memory.lease.attend()
        assert memory.over_blocks() == 4
        memory.unback([1, 2, 3, 4])
        memory.settle()
        # One had no row; the others may still be read.
        assert memory.lease.held == 9 * PAGE
        memory.close(row)
        memory.settle()
        assert memory.lease.held == 6 * PAGE
        assert neighbour.wait_for(4 * PAGE, 60)


def test_weights_come_back_beside_what_is_kept_asleep():
    with lease("one", weights=3 * PAGE) as one:
        memory = make_memory(one)
        # Requests that wait for their turn.
        assert memory.back([1, 2])
        memory.return_weights()
        memory.sleep()
        assert (one.limit, one.held) == (PAGE, 3 * PAGE)
        memory.claim_weights(0)
        assert one.held == 6 * PAGE
        memory.wake()
        memory.close_all()


def test_meanwhile_everything_is_backed_that_is_asked_for(memory):
    with memory.guarded(0):
        row = memory.open([5, 6])
        memory.join()
        memory.rows.arena(0)[row, : 2 * PAGE].fill_(1)
        memory.close(row)
    with pytest.raises(BlockError):
        memory.open([5])


def test_requests_that_can_never_fit_are_refused():
    with lease("big", guarantee=4 * PAGE), lease("one") as own:
        with pytest.raises(ConfigError, match=r"a request of 384 tokens takes .* lower one of"):
            make_memory(own)
        assert own.held == 0


def test_an_engine_that_cannot_start_leaves_the_ledger():
    torch = pytest.importorskip("torch")
    backend = SimpleNamespace(get_name=lambda: "FLASH_ATTN")
    layers = [SimpleNamespace(layer_names=["a", "b"], backend=backend)]
    runner = SimpleNamespace(
        device=torch.device("cpu"),
        attn_groups=[layers],
        max_model_len=384,
        vllm_config=SimpleNamespace(
            additional_config={"pyvattn": {"memory": "shared", "page_size": PAGE}},
            scheduler_config=SimpleNamespace(max_num_seqs=2),
            kv_transfer_config=None,
        ),
    )
    spec = SimpleNamespace(num_kv_heads=2, head_size=64, block_size=64, dtype=torch.float32)

    def no_driver(*_):
        raise DriverUnavailable("none here")

    own = lease("one", guarantee=PAGE)
    with pytest.raises(DriverUnavailable):
        build_memory(runner, [spec], BLOCKS, no_driver, own)
    assert own.closed
