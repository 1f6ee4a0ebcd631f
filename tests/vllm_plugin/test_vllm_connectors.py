# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU whose KV connectors find blocks by vLLM's ids: a prompt comes back by them."""

from __future__ import annotations

import random
from importlib.util import find_spec

import pytest
from async_cpu import kept_async
from engines import WORKER, engine
from engines import run as run_requests
from test_vllm_groups import OPTIONS as GROUP_OPTIONS
from tiny_gemma import write_gemma

from pyvattn import UnsupportedError

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"
)
ROWS = {"worker_cls": WORKER}
# Far fewer blocks than the prompts fill: the prefix cache has lost a prompt that comes back.
SCARCE = {"num_gpu_blocks_override": 14}
NEW_TOKENS = 24


def offload():
    """vLLM's own offload, with the copies that it lacks on a CPU."""
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "HostOffloadingSpec",
            "spec_module_path": "host_offload",
            "cpu_bytes_to_use": 64 << 20,
        },
    }


def example(folder):
    """vLLM's example, which keeps prompts in files and reads layers' own tensors."""
    return {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }


def prompts():
    """Six prompts of three or four blocks of 128 tokens and some more."""
    draw = random.Random(1)
    return [[draw.randrange(3, 1000) for _ in range(draw.randrange(400, 550))] for _ in range(6)]


def serve(model, **options):
    """Serve the prompts twice, one after the other; return tokens and what the steps ran."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    ran, tokens, stats = [], [], {}
    with engine(model, **{**SCARCE, **options}) as llm:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        schedule = scheduler.schedule

        def noted(*arguments, **given):
            step = schedule(*arguments, **given)
            ran[-1] += step.total_num_scheduled_tokens
            return step

        scheduler.schedule = noted
        for _ in range(2):
            ran.append(0)
            for ids in prompts():
                (output,) = llm.generate({"prompt_token_ids": ids}, sampling, use_tqdm=False)
                tokens.append(list(output.outputs[0].token_ids))
        if "worker_cls" in options:
            stats, *_ = llm.collective_rpc("pyvattn_stats")
    return tokens, ran, stats


def run_at_once(model, **options):
    """Serve the prompts twice, all at once each time; return their tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    wanted = [{"prompt_token_ids": ids} for ids in prompts()]
    with engine(model, **{**SCARCE, **options}) as llm:
        return [
            list(output.outputs[0].token_ids)
            for _ in range(2)
            for output in llm.generate(wanted, sampling, use_tqdm=False)
        ]


@pytest.fixture(scope="module")
def stock(tiny_llama):
    """Without a connector: nothing is found in the prefix cache again."""
    tokens, ran, _ = serve(tiny_llama)
    needed = sum(len(ids) + NEW_TOKENS - 1 for ids in prompts())
    assert ran == [needed, needed]
    return tokens, needed


def test_a_prompt_that_was_evicted_comes_back_from_vllms_offload(tiny_llama, stock):
    from host_offload import COPIED

    tokens, needed = stock
    COPIED.update(stored=0, loaded=0)
    ours, ran, stats = serve(tiny_llama, kv_transfer_config=offload(), **ROWS)
    assert ours == tokens
    whole = sum(len(ids) // 128 * 128 for ids in prompts())
    # The first time nothing is known; then whole blocks come back rather than run.
    assert ran == [needed, needed - whole]
    # K and V of a token are 2 heads of 64 floats each, in 2 layers.
    assert COPIED["loaded"] == COPIED["stored"] == whole * 2 * 2 * 64 * 4 * 2
    assert stats["home_map_calls"] > 0
    theirs, theirs_ran, _ = serve(tiny_llama, kv_transfer_config=offload())
    assert (theirs, theirs_ran) == (ours, ran)


def test_layers_in_arenas_of_their_own(tiny_llama, stock):
    options = {"pyvattn": {"page_size": "128K"}}
    ours, ran, _ = serve(
        tiny_llama, kv_transfer_config=offload(), additional_config=options, **ROWS
    )
    assert ours == stock[0]
    assert ran[1] < ran[0]


@pytest.mark.parametrize("ahead", [False, True], ids=["sync", "async"])
def test_requests_at_once(tiny_llama, ahead):
    from host_offload import COPIED

    expected = run_at_once(tiny_llama)
    COPIED.update(stored=0, loaded=0)
    with kept_async():
        options = {"async_scheduling": ahead, "kv_transfer_config": offload()}
        assert run_at_once(tiny_llama, **options, **ROWS) == expected
    assert COPIED["loaded"] > 0


def test_requests_that_are_preempted_and_share_prefixes(tiny_llama):
    from host_offload import COPIED

    options = {"num_gpu_blocks_override": 13, "async_scheduling": True}
    COPIED.update(stored=0, loaded=0)
    with kept_async():
        stock = run_requests(tiny_llama, 96, **options)
        ours = run_requests(
            tiny_llama,
            96,
            scheduler_cls="pyvattn.vllm.Scheduler",
            kv_transfer_config=offload(),
            **options,
            **ROWS,
        )
    assert ours.tokens == stock.tokens
    assert ours.preemptions > 0
    assert COPIED["loaded"] > 0


def test_several_groups_of_layers(tmp_path):
    model = write_gemma(tmp_path)
    options = {**GROUP_OPTIONS, "num_gpu_blocks_override": 70}
    stock, _, _ = serve(model, **options)
    theirs, theirs_ran, _ = serve(model, kv_transfer_config=offload(), **options)
    ours, ran, _ = serve(model, kv_transfer_config=offload(), **options, **ROWS)
    assert ours == theirs == stock
    assert ran == theirs_ran
    assert ran[1] < ran[0]


def test_a_connector_that_reads_the_layers_tensors(tiny_llama, stock, tmp_path):
    tokens, needed = stock
    # It keeps what one step runs of a new request, so that prompts must not be cut.
    options = {"max_num_batched_tokens": 1024, "kv_transfer_config": example(tmp_path)}
    ours, ran, _ = serve(tiny_llama, **options, **ROWS)
    assert ours == tokens
    assert ran == [needed, needed - sum((len(ids) - 1) // 128 * 128 for ids in prompts())]
    # What ours wrote is what stock vLLM reads, and it need not compute it either.
    theirs, theirs_ran, _ = serve(tiny_llama, **options)
    assert theirs == tokens
    assert theirs_ran == [ran[1], ran[1]]


def test_two_connectors_at_once(tiny_llama, stock, tmp_path):
    tokens, _ = stock
    both = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [offload(), example(tmp_path)]},
    }
    options = {"max_num_batched_tokens": 1024, "kv_transfer_config": both}
    ours, ran, _ = serve(tiny_llama, **options, **ROWS)
    assert ours == tokens
    assert ran[1] < ran[0]
    assert any(tmp_path.iterdir())


def test_without_the_home_view_a_connector_is_refused(tiny_llama):
    options = {"pyvattn": {"home_view": False}}
    with (
        pytest.raises(UnsupportedError, match=r"OffloadingConnector without .* home_view"),
        engine(tiny_llama, kv_transfer_config=offload(), additional_config=options, **ROWS),
    ):
        pass
