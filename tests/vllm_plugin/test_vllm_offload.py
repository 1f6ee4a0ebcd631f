# SPDX-License-Identifier: Apache-2.0
"""``bench offload --against vllm``: vLLM's own transfers, with a GPU that is memory of the host."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the bench copies with torch")
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from pyvattn import DriverError  # noqa: E402
from pyvattn.bench import vllm_offload  # noqa: E402

LAYERS, TOKENS, TOKEN_BYTES = 2, 512, 48


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


class Event:
    """Has always passed."""

    def __init__(self, **_):
        pass

    def record(self, _):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass

    def elapsed_time(self, _):
        return 1.0


@pytest.fixture
def sizes(monkeypatch):
    """Stand in for streams and the driver's batch of copies; the size of each copy, by batch."""
    from vllm.v1.kv_offload.cpu import gpu_worker

    batches = []

    def copy(sources, targets, sizes, is_src_access_order_any=False):
        batches.append(sizes.tolist())
        for target, source, size in zip(
            *map(torch.Tensor.tolist, (targets, sources, sizes)), strict=True
        ):
            ctypes.memmove(target, source, size)

    stream = SimpleNamespace(wait_stream=lambda _: None, wait_event=lambda _: None)
    platform = SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda _: nullcontext(),
        is_xpu=lambda: False,
        is_rocm=lambda: False,
    )
    monkeypatch.setattr(gpu_worker, "current_platform", platform)
    monkeypatch.setattr(gpu_worker, "HAS_TRITON", False)
    monkeypatch.setattr(gpu_worker.ops, "swap_blocks_batch", copy)
    monkeypatch.setattr(torch, "Event", Event)
    return batches


@pytest.mark.parametrize(
    ("setting", "copies", "size"),
    [
        (vllm_offload.SETTINGS[0], LAYERS * 32, 16 * TOKEN_BYTES // LAYERS),
        (vllm_offload.SETTINGS[1], LAYERS * 32, 16 * TOKEN_BYTES // LAYERS),
        (vllm_offload.SETTINGS[2], LAYERS * 4, 128 * TOKEN_BYTES // LAYERS),
        (vllm_offload.SETTINGS[3], 32, 16 * TOKEN_BYTES),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_byte_moves_to_the_host_and_back(sizes, setting, copies, size):
    plain = torch.randint(0, 255, (TOKENS * TOKEN_BYTES,), dtype=torch.uint8)
    written = plain.clone()
    transfers = vllm_offload.VllmOffload(plain.as_subclass(OnGpu), LAYERS, TOKEN_BYTES, setting)
    assert transfers.in_words.startswith(f"{copies} copies of ")
    for _ in range(2):
        transfers.out()
        plain.zero_()
        transfers.back()
        assert torch.equal(plain, written)
    transfers.close()
    assert sizes == [[size] * copies] * 4


def test_a_transfer_that_moves_less_is_an_error(sizes):
    plain = torch.zeros(TOKENS * TOKEN_BYTES, dtype=torch.uint8).as_subclass(OnGpu)
    transfers = vllm_offload.VllmOffload(plain, LAYERS, TOKEN_BYTES, vllm_offload.SETTINGS[0])
    transfers.bytes += 1
    with pytest.raises(DriverError, match="asked to move 24577 bytes"):
        transfers.out()


def test_the_version_is_that_of_the_package_and_nothing_is_printed(capsys):
    from importlib.metadata import packages_distributions, version

    (package,) = set(packages_distributions()["vllm"])
    assert vllm_offload.version().startswith(version(package))
    assert capsys.readouterr().out == ""
