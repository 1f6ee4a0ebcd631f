# SPDX-License-Identifier: Apache-2.0
"""The folder's settings for vLLM, which reads them when it is imported."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1",
)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """The folder of a random Llama with a tokenizer, for real vLLM."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: make test-vllm")
    from tiny_vllm_model import write_model

    return write_model(tmp_path_factory.mktemp("tiny-llama"))
