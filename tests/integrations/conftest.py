# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the integration tests; the models need torch, so they are imported late."""

from __future__ import annotations

import pytest


@pytest.fixture
def llama():
    from tiny_models import make_llama

    return make_llama()


@pytest.fixture(params=["llama-gqa", "gpt2-mha"])
def model(request):
    from tiny_models import make_gpt2, make_llama

    return make_llama() if request.param == "llama-gqa" else make_gpt2()


@pytest.fixture
def prompts():
    from tiny_models import random_prompts

    return random_prompts()


@pytest.fixture
def kv(llama):
    """Three slots of 128 tokens for the Llama."""
    from pyvattn import KVCache
    from pyvattn.integrations.transformers import spec_for

    spec = spec_for(llama, max_slots=3, max_tokens=128)
    with KVCache(spec, device="cpu", memory="64MiB") as kv:
        yield kv
