# SPDX-License-Identifier: Apache-2.0
"""When new tokens are stored by the fused kernel, and when by torch's operations."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="tokens are tensors of torch")

from pyvattn.attention import fused  # noqa: E402
from pyvattn.cuda_graphs import GraphPool, is_capturing  # noqa: E402

BF16, F8 = torch.bfloat16, torch.float8_e4m3fn


class Cuda:
    """A tensor of shape and dtype alone, on a GPU."""

    is_cuda = True

    def __init__(self, *shape, dtype=BF16):
        self.shape, self.dtype = shape, dtype

    def numel(self):
        return torch.Size(self.shape).numel()

    def get_device(self):
        return 0


PLACES = Cuda(1)


def chosen(tokens, new=BF16, cached=BF16, slots=PLACES, positions=PLACES):
    tensor = Cuda(tokens, 8, 128, dtype=new)
    return fused.is_fused(slots, positions, tensor, Cuda(4, 4096, 8, 128, dtype=cached))


@pytest.fixture(autouse=True)
def capability(monkeypatch):
    found = {"is": (9, 0)}
    monkeypatch.setattr(fused, "_capability", lambda device: found["is"])
    return found


class FakeGraphs:
    """What GraphPool takes of torch, on a machine without CUDA."""

    def __init__(self):
        stream = SimpleNamespace(wait_stream=lambda other: None)
        graph = SimpleNamespace(pool=lambda: None, replay=lambda: None)
        self.cuda = SimpleNamespace(
            current_stream=lambda device: stream,
            Stream=lambda device: stream,
            CUDAGraph=lambda: graph,
            stream=lambda side: nullcontext(),
            graph=lambda *args, **options: nullcontext(),
            set_stream=lambda here: None,
        )


def test_many_tokens_are():
    assert chosen(1024)
    assert not chosen(1023)


def test_tokens_that_are_quantised_are():
    assert chosen(1, cached=F8)
    assert not chosen(1, new=F8, cached=F8)


def test_steps_that_are_captured_are_from_the_first_run_on():
    seen = []
    GraphPool(FakeGraphs()).capture(lambda: seen.append(chosen(1)))
    assert seen == [True, True]
    assert not is_capturing()


def test_a_capture_that_fails_is_over():
    def fail():
        raise RuntimeError("no capture")

    with pytest.raises(RuntimeError, match="no capture"):
        GraphPool(FakeGraphs()).capture(fail)
    assert not is_capturing()


def test_a_gpu_that_triton_does_not_support_has_none(capability):
    capability["is"] = (7, 5)
    assert not chosen(4096)
    capability["is"] = (8, 0)
    assert chosen(4096)
    assert not chosen(4096, cached=F8)
    capability["is"] = (8, 9)
    assert chosen(4096, cached=F8)


def test_places_that_lie_on_the_host_are_not():
    host = torch.zeros(1, dtype=torch.int64)
    assert not chosen(4096, slots=host)
    assert not chosen(4096, positions=host)
