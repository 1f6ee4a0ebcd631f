# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on a CPU: two engines that share one budget, and say what stock says."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

import pytest
from async_cpu import kept_async
from engines import WORKER, count_calls, engine

from pyvattn import ConfigError, SharedMemory, UnsupportedError
from pyvattn.integrations import vllm as plugin
from pyvattn.shared import create_ledger, limit_member, read_ledgers

SCHEDULER = "pyvattn.vllm.Scheduler"
# A block of the tiny model's.
BLOCK = 256 << 10
BLOCKS = 24
# Those that the tiny model's weights fit in.
WEIGHTS = 27
PATIENCE_S = 300.0


def shared(name, **options):
    return {
        "worker_cls": WORKER,
        "scheduler_cls": SCHEDULER,
        "additional_config": {"pyvattn": {"memory": "shared", "name": name, **options}},
    }


@pytest.fixture
def runtime(tmp_path, monkeypatch, request):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(folder))
    blocks = getattr(request, "param", BLOCKS)
    create_ledger("cpu", budget=blocks * BLOCK, chunk_size=BLOCK)


@pytest.fixture
def start(runtime, tiny_llama):
    with ExitStack() as stack:

        def start(name, guarantee=0, sleep_weights=True, weights=0, **options):
            given = shared(name, guarantee=guarantee, sleep_weights=sleep_weights, weights=weights)
            stack.enter_context(kept_async())
            return stack.enter_context(engine(tiny_llama, **given, **options))

        yield start


def prompts(count, tokens, seed):
    draw = random.Random(seed)
    return [[draw.randrange(3, 1000) for _ in range(tokens)] for _ in range(count)]


class Asked:
    """Requests of one engine, and what has been said of them."""

    def __init__(self, llm, prompts, new_tokens):
        from vllm import SamplingParams

        self.engine = llm.llm_engine
        self.names = [f"{id(self)}-{i}" for i in range(len(prompts))]
        self.tokens = {}
        sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        for name, ids in zip(self.names, prompts, strict=True):
            self.engine.add_request(name, {"prompt_token_ids": ids}, sampling)

    def step(self):
        for output in self.engine.step():
            if output.finished:
                self.tokens[output.request_id] = list(output.outputs[0].token_ids)

    @property
    def done(self):
        """All is said, and the worker has been told what ended."""
        has_more = self.engine.engine_core.engine_core.scheduler.has_requests()
        return len(self.tokens) == len(self.names) and not has_more

    @property
    def said(self):
        return [self.tokens[name] for name in self.names]


def until(condition, *asked):
    """Step engines in turn until it is so; at every moment the budget is kept."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        for each in asked:
            each.step()
        (ledger,) = read_ledgers()
        assert sum(member.used for member in ledger.members) <= ledger.budget


def member(name):
    (ledger,) = read_ledgers()
    (found,) = [each for each in ledger.members if each.name == name]
    return found


def used_blocks(name):
    return member(name).used // BLOCK


@pytest.fixture(scope="module")
def stock(tiny_llama):
    """What vLLM without us says."""
    with engine(tiny_llama) as llm:

        def say(prompts, new_tokens):
            asked = Asked(llm, prompts, new_tokens)
            while not asked.done:
                asked.step()
            return asked.said

        yield say


def preemptions(llm):
    return count_calls(llm.llm_engine.engine_core.engine_core.scheduler, "_preempt_request")


def test_an_idle_engine_hands_its_prefix_cache_to_a_busy_one(start, stock):
    one, two = start("one"), start("two")
    # The null block, and nothing that no request has asked for.
    assert used_blocks("one") == used_blocks("two") == 1
    first, second = prompts(4, 600, seed=1), prompts(4, 620, seed=2)
    asked = Asked(one, first, 8)
    until(lambda: asked.done, asked)
    assert used_blocks("one") >= 17
    more = Asked(two, second, 8)
    # Only the busy one is stepped.
    until(lambda: more.done, more)
    assert used_blocks("one") + used_blocks("two") <= BLOCKS
    assert asked.said + more.said == stock(first + second, 8)


def test_two_busy_engines_share_what_is_short(start, stock):
    one, two = start("one"), start("two")
    texts = prompts(6, 400, seed=3), prompts(6, 300, seed=4)
    asked = [Asked(llm, each, 24) for llm, each in zip((one, two), texts, strict=True)]
    until(lambda: all(each.done for each in asked), *asked)
    assert asked[0].said + asked[1].said == stock(texts[0] + texts[1], 24)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_running_requests_end_for_one_below_its_guarantee_and_go_on_later(start, stock, is_async):
    one = start("one", async_scheduling=is_async)
    first = prompts(4, 600, seed=5)
    # They fit in the blocks of their prompts: vLLM itself has no reason to end one.
    asked = Asked(one, first, 30)
    running = one.llm_engine.engine_core.engine_core.scheduler.running
    until(lambda: len([each for each in running if each.num_output_tokens]) == 4, asked)
    ended = preemptions(one)
    # It joins late: nothing of its guarantee is free.
    with SharedMemory("cpu", guarantee=14 * BLOCK, name="two") as two:
        until(lambda: two.leased >= 14 * BLOCK, asked)
        assert ended
        assert not asked.done
        assert used_blocks("one") <= BLOCKS - 14
        until(lambda: asked.done, asked)
    assert asked.said == stock(first, 30)


def test_no_request_ends_because_a_neighbour_only_wants_more(start):
    one, two = start("one"), start("two")
    ended = preemptions(one)
    asked = Asked(one, prompts(4, 600, seed=7), 30)
    until(lambda: used_blocks("one") >= 20, asked)
    more = Asked(two, prompts(2, 600, seed=8), 8)
    until(lambda: asked.done and more.done, asked, more)
    assert not ended


def test_an_operator_takes_what_is_not_in_use(start):
    one = start("one")
    asked = Asked(one, prompts(4, 600, seed=9), 4)
    until(lambda: asked.done, asked)
    limit_member("one", 6 * BLOCK)
    until(lambda: used_blocks("one") <= 6)
    again = Asked(one, prompts(2, 500, seed=10), 4)
    until(lambda: again.done, again)
    assert used_blocks("one") <= 6
    # Blocks that are held out are not in use.
    assert one.reset_prefix_cache()


def test_one_that_sleeps_keeps_a_block_and_leaves_its_guarantee_to_others(start, stock):
    one = start("one", guarantee=14 * BLOCK, sleep_weights=False)
    assert one.llm_engine.model_config.sleep_mode_backend == "pyvattn"
    first = prompts(2, 600, seed=12)
    asked = Asked(one, first, 4)
    until(lambda: asked.done, asked)
    assert used_blocks("one") >= 9
    with SharedMemory("cpu", name="two") as two:
        one.sleep(level=1)
        assert used_blocks("one") == 1
        until(lambda: two.wait_for((BLOCKS - 1) * BLOCK, 1))
        two.want(0)
        one.wake_up()
        assert member("one").limit is None
    again = Asked(one, first, 4)
    until(lambda: again.done, again)
    assert asked.said == again.said == stock(first, 4)


@pytest.mark.parametrize("runtime", [WEIGHTS + BLOCKS], indirect=True)
def test_weights_are_leased_before_they_are_loaded_and_kv_has_what_is_left(
    start, stock, monkeypatch
):
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    while_loading = []
    load = CPUModelRunner.load_model

    def noted(*arguments, **options):
        while_loading.append(used_blocks("one"))
        return load(*arguments, **options)

    monkeypatch.setattr(CPUModelRunner, "load_model", noted)
    one = start("one", weights=WEIGHTS * BLOCK)
    assert while_loading == [WEIGHTS]
    assert used_blocks("one") == WEIGHTS + 1
    first = prompts(4, 600, seed=13)
    asked = Asked(one, first, 4)
    until(lambda: asked.done, asked)
    assert asked.said == stock(first, 4)
    # On a CPU vLLM leaves weights where they are.
    one.sleep(level=1)
    assert used_blocks("one") == WEIGHTS + 1


def test_less_than_the_weights_take_is_refused(start):
    with pytest.raises(ConfigError, match=r"weights=256 KiB: the model has .* lease as much"):
        start("one", weights=BLOCK)


def test_vllms_metrics_have_what_the_ledgers_say_where_that_is_asked_for(start, monkeypatch):
    from prometheus_client import REGISTRY

    start("one")
    monkeypatch.setenv("PYVATTN_METRICS", "1")
    for _ in range(2):  # as vLLM may do in one process
        plugin.register()
    exported = {metric.name: metric for metric in REGISTRY.collect()}
    (used,) = exported["pyvattn_member_used_bytes"].samples
    assert (used.labels["member"], used.value) == ("one", BLOCK)


def test_what_cannot_share_is_refused(runtime, tiny_llama):
    without = {**shared("one"), "scheduler_cls": None}
    with (
        pytest.raises(UnsupportedError, match=r"add --scheduler-cls pyvattn\.vllm\.Scheduler"),
        engine(tiny_llama, **without),
    ):
        pass


def test_a_length_that_the_guarantees_of_others_leave_no_room_for_is_refused(start, tiny_llama):
    start("one", guarantee=17 * BLOCK)
    with (
        pytest.raises(ConfigError, match=r"1024 tokens takes .* lower one of them or --max-model"),
        engine(tiny_llama, **shared("two")),
    ):
        pass
