# SPDX-License-Identifier: Apache-2.0
"""A worker whose driver calls fail on purpose: named to vLLM as ``faulty.Worker``."""

from __future__ import annotations

from pyvattn import _native
from pyvattn.vllm import Worker as RowWorker


class Worker(RowWorker):
    """Fails the call that the test chooses, once or every time."""

    def make_driver(self, name, page_size, device):
        self.faults = _native.FaultAdaptor(super().make_driver(name, page_size, device))
        return self.faults

    def fail_nth(self, nth):
        """Make the nth driver call from now fail."""
        self.faults.fail_nth(nth)

    def fail_always(self):
        """Make every attempt to map fail from here on."""
        rows = self.model_runner.pyvattn_memory.rows
        join = rows.join

        def fail():
            self.faults.fail_nth(0)
            join()

        self.faults.fail_nth(0)
        rows.join = fail
