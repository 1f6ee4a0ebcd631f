# SPDX-License-Identifier: Apache-2.0
"""Caches and pools whose memory is leased from a ledger that processes share."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from pyvattn import (
    BlockPool,
    BusyError,
    CacheSpec,
    ClosedError,
    ConfigError,
    ForkError,
    KVCache,
    LedgerBusy,
    LedgerCorrupt,
    LedgerError,
    LedgerFull,
    LedgerLost,
    LedgerVersion,
    OutOfMemory,
    SharedMemory,
)
from pyvattn.shared import create_ledger, ledger_path, limit_member, read_ledgers, reset_ledger

PAGE = 64 << 10
# One page in each of four arenas holds 256 tokens.
BLOCK = 4 * PAGE
TOKENS = 256
PATIENCE = 60.0


def spec():
    return CacheSpec(2, 1, 64, "float32", max_slots=4, max_tokens=64 * TOKENS)


def opened(memory, **options):
    options = {"page_size": PAGE, "layout": "layer", "background": False, **options}
    return KVCache(spec(), device="cpu", memory=memory, **options)


def lease(**options):
    options = {"budget": 16 * BLOCK, "chunk_size": BLOCK, **options}
    return SharedMemory("cpu", **options)


def only_ledger():
    (ledger,) = read_ledgers()
    return ledger


def test_a_cache_joins_the_ledger_and_leaves_it(runtime, monkeypatch):
    with pytest.raises(ConfigError, match="PYVATTN_SHARED_BUDGET"):
        opened("shared")
    monkeypatch.setenv("PYVATTN_SHARED_BUDGET", "1GiB")
    with opened("shared", guarantee="96MiB", weight=2) as cache:
        cache.admit(4 * TOKENS)
        (member,) = only_ledger().members
        assert (member.guarantee, member.lease, member.weight) == (96 << 20, 96 << 20, 2.0)
        assert member.used == cache.stats().bytes_allocated
        assert member.pid == os.getpid()
    assert only_ledger().members == ()
    assert only_ledger().free == only_ledger().budget == 1 << 30


def test_a_cache_that_cannot_be_opened_leaves_the_ledger(runtime):
    create_ledger("cpu", budget="64MiB")
    with pytest.raises(ConfigError, match="read_ahead"):
        opened("shared", guarantee="64MiB", read_ahead=-1)
    assert only_ledger().free == 64 << 20
    with pytest.raises(ConfigError, match="memory='shared'"):
        opened("64MiB", guarantee="1MiB")


def test_caches_and_pools_hold_no_more_than_the_budget_together(runtime):
    with lease() as one, lease() as two:
        pool = BlockPool(spec(), device="cpu", memory=two, page_size=PAGE, layout="layer")
        with opened(one) as cache, pool:
            cache.admit(10 * TOKENS)
            assert len(pool.allocate(6)) == 6
            with pytest.raises(OutOfMemory):
                pool.allocate(1)
            assert one.held + two.held == 16 * BLOCK == one.leased + two.leased


@pytest.mark.parametrize("background", [False, True])
def test_a_cache_gets_what_an_idle_neighbour_can_spare(runtime, background):
    with (
        lease() as one,
        lease() as two,
        opened(one, background=background) as cache,
        opened(two) as other,
    ):
        cache.release(cache.admit(12 * TOKENS))
        kept = cache.admit(2 * TOKENS)
        # Its neighbour's thread answers; nobody calls into that cache.
        assert two.wait_for(12 * BLOCK, PATIENCE)
        other.admit(12 * TOKENS)
        assert cache.length(kept) == 2 * TOKENS
        assert one.held + two.held <= 16 * BLOCK


def test_an_operator_limits_a_member_and_frees_it_again(runtime):
    with lease(name="chat", guarantee=8 * BLOCK) as one, lease(name="batch") as two:
        assert limit_member("chat", 3 * BLOCK).name == "chat"
        assert two.wait_for(13 * BLOCK, PATIENCE)
        assert one.leased == 3 * BLOCK
        limit = {member.name: member.limit for member in only_ledger().members}
        assert limit == {"chat": 3 * BLOCK, "batch": None}
        limit_member("chat", None)
        assert one.wait_for(3 * BLOCK, PATIENCE)
        with pytest.raises(ConfigError, match="no member is called 'nobody'"):
            limit_member("nobody", "1MiB")
        with pytest.raises(ConfigError, match="2 members"):
            limit_member(str(os.getpid()), "1MiB")


def test_a_lease_refuses_what_it_cannot_be(runtime):
    with pytest.raises(ConfigError, match="weight 0"):
        lease(weight=0)
    with pytest.raises(ConfigError, match="name ''"):
        lease(name="")
    with pytest.raises(ConfigError, match="guarantee 'much'"):
        lease(guarantee="much")
    with lease(guarantee=10 * BLOCK, name="first") as one:
        with pytest.raises(LedgerFull, match="first"):
            lease(guarantee=10 * BLOCK)
        with pytest.raises(ConfigError, match="leave the budget out"):
            lease(budget=8 * BLOCK)
        with pytest.raises(LedgerBusy, match="alive"):
            reset_ledger("cpu")
        assert one.leased == 10 * BLOCK
    with pytest.raises(ClosedError):
        one.want(1)
    assert repr(one) == "<SharedMemory, closed>"


def test_a_lease_in_use_is_not_closed(runtime):
    with lease() as one, opened(one) as cache:
        cache.admit(TOKENS)
        with pytest.raises(BusyError, match="close the caches"):
            one.close()


def test_a_child_uses_neither_the_lease_nor_keeps_it_alive(runtime):
    context = multiprocessing.get_context("fork")
    one = lease(guarantee=4 * BLOCK, name="parent")
    receive, send = context.Pipe(duplex=False)
    go_on, wait = context.Event(), context.Event()

    def child():
        refused = []
        for call in (lambda: one.want(1), one.close, lambda: one.wait_for(1, 0)):
            try:
                call()
            except ForkError:
                refused.append(True)
        with lease(name="child"):
            send.send((refused, [member.name for member in only_ledger().members]))
        go_on.set()
        wait.wait(PATIENCE)

    process = context.Process(target=child)
    process.start()
    refused, names = receive.recv()
    assert refused == [True] * 3
    assert names == ["parent", "child"]
    assert go_on.wait(PATIENCE)
    # The child lives on; its parent leaves.
    one.close()
    assert only_ledger().free == 16 * BLOCK
    wait.set()
    process.join()


def test_garbage_is_no_ledger_and_reset_removes_it(runtime):
    path = ledger_path("cpu")
    for content in (b"", b"garbage", os.urandom(1 << 16)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(LedgerCorrupt, match="pyvattn ledger reset"):
            lease()
        reset_ledger("cpu")
    with lease() as one:
        os.truncate(path, 5000)
        one.attend()
        assert one.lost
        with pytest.raises(LedgerLost, match="restart this engine"):
            one.want(1)
        with pytest.raises(LedgerCorrupt):
            read_ledgers()


def test_a_ledger_of_another_release_is_refused(runtime):
    path = create_ledger("cpu", budget="64MiB")
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\x09\x00")
    for call in (lease, read_ledgers):
        with pytest.raises(LedgerVersion, match=r"layout 9\.0.*the same release"):
            call()


def test_the_folder_must_be_the_user_s_own(runtime, tmp_path, monkeypatch):
    runtime.chmod(0o755)
    with pytest.raises(LedgerError, match="mode 0700"):
        lease()
    runtime.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(runtime)
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(link))
    with pytest.raises(LedgerError, match="no link"):
        lease()
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(tmp_path / "not" / "there"))
    with pytest.raises(LedgerError, match="set PYVATTN_RUNTIME_DIR"):
        lease()
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(runtime))
    with lease():
        assert ledger_path("cpu").stat().st_mode & 0o777 == 0o600
