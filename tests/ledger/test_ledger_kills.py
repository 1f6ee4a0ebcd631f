# SPDX-License-Identifier: Apache-2.0
"""Members in processes of their own that are killed and stopped under load.

The long run is by hand: `make test PYTEST_ARGS='tests/ledger/test_ledger_kills.py --kills 10000'`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyvattn import SharedMemory
from pyvattn.shared import create_ledger, read_ledgers

ENGINE = Path(__file__).with_name("engine.py")
CHUNK = 256 << 10
CHUNKS = 64
MEMBERS = 3
PATIENCE = 60.0


@pytest.fixture
def engines(runtime):
    """Start members; whatever is left of them ends with the test."""
    create_ledger("cpu", budget=CHUNKS * CHUNK, chunk_size=CHUNK)
    running = []

    def start(name, seed, guarantee=4 * CHUNK):
        process = subprocess.Popen(
            [sys.executable, ENGINE, name, str(guarantee), str(seed)], stdout=subprocess.PIPE
        )
        running.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def end(process):
    """Kill it; it must not have ended by itself, as it does where it finds tokens wrong."""
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def check(ledger):
    leased = sum(member.lease for member in ledger.members)
    assert leased + ledger.free + ledger.cooling + ledger.unknown == CHUNKS * CHUNK
    for member in ledger.members:
        assert member.readable
        assert member.used <= CHUNKS * CHUNK


def test_killed_members_leave_a_ledger_that_is_whole(engines, pytestconfig):
    kills = pytestconfig.getoption("kills")
    draw = random.Random(kills)
    running = [engines(f"m{i}", i) for i in range(MEMBERS)]
    with SharedMemory("cpu", name="watcher") as watcher:
        for kill in range(kills):
            (ledger,) = read_ledgers()
            check(ledger)
            victim = draw.randrange(MEMBERS)
            end(running[victim])
            running[victim] = engines(f"k{kill}", MEMBERS + kill)
        for process in running:
            end(process)
        # Nothing is lost: all of it can be leased.
        assert watcher.wait_for(CHUNKS * CHUNK, PATIENCE)
        (ledger,) = read_ledgers()
        assert [member.name for member in ledger.members] == ["watcher"]


def test_a_stopped_member_keeps_its_own_and_holds_nobody_up(engines):
    part = 24 * CHUNK
    with (
        SharedMemory("cpu", name="one", guarantee=part) as one,
        SharedMemory("cpu", name="two", guarantee=part) as two,
    ):
        stopped = engines("stopped", 1)
        os.kill(stopped.pid, signal.SIGSTOP)
        os.waitpid(stopped.pid, os.WUNTRACED)
        (ledger,) = read_ledgers()
        lease = {member.name: member.lease for member in ledger.members}["stopped"]
        assert lease >= 4 * CHUNK
        rest = CHUNKS * CHUNK - part - lease
        assert one.wait_for(rest, PATIENCE)
        assert not one.wait_for(rest + 1, 0)
        (ledger,) = read_ledgers()
        assert {member.name: member.lease for member in ledger.members}["stopped"] == lease
        stopped.kill()
        stopped.wait()
        # The other no longer asks for anything, and has its guarantee.
        assert two.wait_for(CHUNKS * CHUNK - part, PATIENCE)
