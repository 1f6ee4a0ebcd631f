# SPDX-License-Identifier: Apache-2.0
"""Runner V1's waits for maps, on a stand-in: tests with real vLLM run the rest of it."""

from __future__ import annotations

import pytest
from test_memory import make_memory

from pyvattn.integrations.vllm.runners import RunnerV1, adopt_runner


class StandInRunner:
    """``vllm.v1.worker.gpu_model_runner.GPUModelRunner``."""

    def _model_forward(self, input_ids, *, positions):
        return self.run(input_ids, positions)

    def _dummy_run(self, num_tokens, *, is_profile=False):
        return self.run(num_tokens, is_profile)

    def run(self, *given):
        """The model: say what it was given, and how often the host had waited by then."""
        memory = self.pyvattn_memory
        return given, None if memory is None else memory.stats()["waits"]


@pytest.fixture
def runner():
    runner = StandInRunner()
    adopt_runner(runner, RunnerV1, None)
    return runner


def test_a_model_runs_once_everything_is_mapped(runner):
    memory, _ = make_memory()
    runner.pyvattn_memory = memory
    row = memory.open([1, 2])
    assert memory.stats()["waits"] == 0
    assert runner._model_forward("ids", positions=7) == (("ids", 7), 1)
    memory.extend(row, [3])
    # vLLM calls the model by itself there.
    assert runner._dummy_run(5, is_profile=True) == ((5, True), 2)
    memory.close_all()


def test_a_run_before_there_is_memory_waits_for_nothing(runner):
    assert runner._dummy_run(5) == ((5, False), None)
