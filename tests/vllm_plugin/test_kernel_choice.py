# SPDX-License-Identifier: Apache-2.0
"""Which kernel CUSTOM runs, and what must be mapped for it, asked of a vLLM that stands in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pyvattn import UnsupportedError
from pyvattn.integrations.vllm import kernel_choice
from pyvattn.integrations.vllm.kernel_choice import (
    attends_by_flash_rows,
    check_guard,
    guard_tokens,
    reads_by_table,
)
from pyvattn.kernels import kernel_named

READS = kernel_named("flash-attn-3").guard_tokens


class Stock:
    """A scheduler of vLLM's."""


class Ours(Stock):
    """One of ours."""

    allocates_guard = True


def config(backend="CUSTOM", scheduler=Ours, cache_dtype="auto", **options):
    return SimpleNamespace(
        additional_config={"pyvattn": options},
        cache_config=SimpleNamespace(cache_dtype=cache_dtype),
        attention_config=SimpleNamespace(backend=backend and SimpleNamespace(name=backend)),
        scheduler_config=SimpleNamespace(get_scheduler_cls=lambda: scheduler),
    )


@pytest.fixture
def vllm(monkeypatch):
    """A vLLM on a GPU, with FlashAttention-3."""
    stand_in = SimpleNamespace(cuda=True, version=3)
    modules = {
        "vllm.platforms": SimpleNamespace(
            current_platform=SimpleNamespace(is_cuda=lambda: stand_in.cuda)
        ),
        "vllm.v1.attention.backends.fa_utils": SimpleNamespace(
            get_flash_attn_version=lambda: stand_in.version
        ),
    }
    monkeypatch.setattr(kernel_choice, "import_module", modules.__getitem__)
    return stand_in


@pytest.mark.parametrize(("dtype", "reads"), [("fp8", 224), ("fp8_e4m3", 224), ("bfloat16", 192)])
def test_tiles_of_float8_are_longer(vllm, dtype, reads):
    assert guard_tokens(config(cache_dtype=dtype)) == reads


@pytest.mark.parametrize("kernel", ["auto", "flash-attn-3"])
def test_on_hopper_custom_is_flash_attention_3_with_a_guard(vllm, kernel):
    asked = config(kernel=kernel)
    assert attends_by_flash_rows(asked)
    assert guard_tokens(asked) == READS > 0
    check_guard(asked)


@pytest.mark.parametrize("dtype", ["fp8", "bfloat16"])
def test_by_a_table_it_needs_no_guard_and_any_scheduler_will_do(vllm, dtype):
    asked = config(kernel="flash-attn-3-paged", scheduler=Stock, cache_dtype=dtype)
    assert attends_by_flash_rows(asked)
    assert reads_by_table(asked)
    assert guard_tokens(asked) == 0
    check_guard(asked)
    assert not reads_by_table(config())


@pytest.mark.parametrize(
    ("asked", "cuda", "version"),
    [
        (config(), False, 3),
        (config(), True, 2),
        (config(kernel="torch-varlen"), True, 3),
        (config(backend="FLASH_ATTN", scheduler=Stock), True, 3),
        (config(backend=None, scheduler=Stock), True, 3),
    ],
)
def test_elsewhere_no_guard_is_needed_and_any_scheduler_will_do(vllm, asked, cuda, version):
    vllm.cuda, vllm.version = cuda, version
    assert not attends_by_flash_rows(asked)
    assert guard_tokens(asked) == 0
    check_guard(asked)


def test_a_guard_may_be_asked_for_where_none_is_needed(vllm):
    assert guard_tokens(config(backend="FLASH_ATTN", guard_tokens=64)) == 64


def test_a_scheduler_that_allocates_no_guard_is_refused_with_the_option_to_add(vllm):
    with pytest.raises(UnsupportedError, match=r"add --scheduler-cls pyvattn\.vllm\.Scheduler"):
        check_guard(config(scheduler=Stock))


def test_a_guard_that_is_too_short_is_refused_with_its_value(vllm):
    with pytest.raises(UnsupportedError, match=r"guard_tokens=16: .* leave the option out"):
        check_guard(config(guard_tokens=16))
    check_guard(config(guard_tokens=READS + 100))
