# SPDX-License-Identifier: Apache-2.0
"""Members of a ledger against a model of it: who holds what, while some join, leave and die."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvattn import LedgerFull, _native

CHUNK = 1 << 20
CHUNKS = 16
members = _native.emulated_members


class Ledger(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = str(self.folder / "ledger")
        _native.create_ledger(self.path, "emulated", CHUNKS * CHUNK, CHUNK)
        self.watcher = _native.Ledger(self.path)
        # The leases that live; what the model says they hold; what they were guaranteed.
        self.leases, self.held, self.guarantee = {}, {}, {}
        self.number = 0

    def teardown(self):
        for name, lease in self.leases.items():
            lease.return_bytes(self.held[name])
            lease.close()
        shutil.rmtree(self.folder)

    def attend(self, rounds=4):
        for _ in range(rounds):
            for lease in self.leases.values():
                lease.attend()

    def pick(self, data):
        return data.draw(st.sampled_from(sorted(self.leases)))

    @rule(guarantee=st.integers(0, 6), weight=st.integers(1, 4000))
    def join(self, guarantee, weight):
        self.number += 1
        name = f"m{self.number}"
        fits = sum(self.guarantee.values()) + guarantee <= CHUNKS
        if len(self.leases) >= 5:
            return
        try:
            lease = members.join(self.path, CHUNKS * CHUNK, CHUNK, name, guarantee * CHUNK, weight)
        except LedgerFull:
            assert not fits
            return
        assert fits
        self.leases[name], self.held[name], self.guarantee[name] = lease, 0, guarantee

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), size=st.integers(1, 6 * CHUNK))
    def take(self, data, size):
        name = self.pick(data)
        lease = self.leases[name]
        if lease.take(size):
            self.held[name] += size
        else:
            lease.want(size)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data):
        name = self.pick(data)
        size = data.draw(st.integers(0, self.held[name]))
        self.held[name] -= size
        self.leases[name].want(0)
        self.leases[name].return_bytes(size)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def attend_one(self, data):
        self.leases[self.pick(data)].attend()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), chunks=st.integers(0, CHUNKS))
    def limit(self, data, chunks):
        self.leases[self.pick(data)].set_limit(chunks * CHUNK)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), dies=st.booleans())
    def end(self, data, dies):
        name = self.pick(data)
        lease, held = self.leases.pop(name), self.held.pop(name)
        del self.guarantee[name]
        if dies:
            members.kill(lease)
        else:
            lease.return_bytes(held)
            lease.close()

    @precondition(lambda self: self.leases)
    @rule()
    def nothing_is_lost(self):
        """Once all had their turn, what nobody leases is free."""
        self.attend()
        look = self.watcher.look()
        assert look.cooling == look.unknown == 0

    @precondition(lambda self: self.leases)
    @rule()
    def they_come_to_rest(self):
        self.attend(8)
        before = [lease.leased for lease in self.leases.values()]
        self.attend(2)
        assert [lease.leased for lease in self.leases.values()] == before

    @invariant()
    def every_chunk_is_counted_once(self):
        look = self.watcher.look()
        leases = {member.name.decode(): member.lease for member in look.members}
        assert look.free + look.cooling + look.unknown + sum(leases.values()) == CHUNKS
        assert set(leases) == set(self.leases)
        for name, lease in self.leases.items():
            assert lease.held == self.held[name] <= leases[name] * CHUNK
            # Others may have handed it chunks that it has not seen.
            assert lease.leased <= leases[name] * CHUNK


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
