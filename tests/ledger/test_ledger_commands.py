# SPDX-License-Identifier: Apache-2.0
"""`pyvattn top`, `limit` and `ledger`, as an operator and a script see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from pyvattn import SharedMemory

MIB = 1 << 20
PATIENCE = 60.0


def pyvattn(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pyvattn", *arguments], capture_output=True, text=True
    )


def looked():
    done = pyvattn("top", "--once", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_top_shows_each_member_and_what_is_free(runtime):
    assert looked() == []
    assert "docs/elastic.md" in pyvattn("top", "--once").stdout
    with SharedMemory("cpu", budget="256MiB", guarantee="64MiB", name="chat") as memory:
        assert memory.wait_for("96MiB", PATIENCE)
        (ledger,) = looked()
        (member,) = ledger["members"]
        assert ledger["budget"] == 256 * MIB
        assert member["lease"] + ledger["free"] == 256 * MIB
        assert (member["name"], member["pid"]) == ("chat", os.getpid())
        assert (member["guarantee"], member["limit"]) == (64 * MIB, None)
        shown = pyvattn("top", "--once")
        assert shown.returncode == 0
        assert "chat" in shown.stdout


def test_limit_moves_a_limit_and_says_what_it_did(runtime):
    with SharedMemory("cpu", budget="256MiB", guarantee="64MiB", name="chat"):
        done = pyvattn("limit", "chat", "32MiB")
        assert done.returncode == 0, done.stderr
        assert "chat" in done.stdout
        assert looked()[0]["members"][0]["limit"] == 32 * MIB
        assert pyvattn("limit", str(os.getpid()), "none").returncode == 0
        assert looked()[0]["members"][0]["limit"] is None
        for arguments in (("limit", "nobody", "1MiB"), ("limit", "chat", "much")):
            refused = pyvattn(*arguments)
            assert refused.returncode == 2
            assert arguments[1] in refused.stderr or arguments[2] in refused.stderr


def test_ledger_is_made_and_removed_by_hand(runtime):
    made = pyvattn("ledger", "create", "--device", "cpu", "--budget", "128MiB")
    assert made.returncode == 0, made.stderr
    assert looked()[0]["budget"] == 128 * MIB
    with SharedMemory("cpu", name="chat"):
        refused = pyvattn("ledger", "reset", "--device", "cpu")
        assert refused.returncode == 3
        assert "alive" in refused.stderr
    assert pyvattn("ledger", "reset", "--device", "cpu").returncode == 0
    assert looked() == []
    assert pyvattn("ledger", "reset", "--device", "cpu").returncode == 3
