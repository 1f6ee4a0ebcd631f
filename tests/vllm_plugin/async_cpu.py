# SPDX-License-Identifier: Apache-2.0
"""Async scheduling on a CPU, where vLLM turns it off since nothing gains by it.

With it the scheduler hands out a step's blocks before it knows what the step before said, and
learns that a request has ended when another step has been scheduled with it. That is the same as
on a GPU. A step of the CPU is done when it returns, so streams and events have nothing to wait for.
"""

from __future__ import annotations

import contextlib
from unittest import mock


class _Done:
    """Stands for ``torch.cuda``'s events and streams: all that came before is done."""

    def __init__(self, *_, **__):
        pass

    def record(self, *_):
        pass

    def synchronize(self):
        pass

    def wait_stream(self, _):
        pass


@contextlib.contextmanager
def kept_async():
    """Let ``async_scheduling=True`` hold for the engines that are built and run meanwhile."""
    import torch

    # It replaces some of torch.cuda for the process: not meanwhile, or that would be undone.
    import vllm.v1.worker.cpu.shm  # noqa: F401
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_and_keep(_, config):
        asked = config.scheduler_config.async_scheduling
        check(config)
        config.scheduler_config.async_scheduling = asked

    with contextlib.ExitStack() as patches:
        enter = patches.enter_context
        keeping = classmethod(check_and_keep)
        enter(mock.patch.object(CpuPlatform, "check_and_update_config", keeping))
        enter(mock.patch.object(torch.cuda, "Event", _Done))
        enter(mock.patch.object(torch.cuda, "Stream", _Done))
        enter(mock.patch.object(torch.cuda, "current_stream", _Done))
        enter(mock.patch.object(torch.cuda, "stream", contextlib.nullcontext))
        yield
