# SPDX-License-Identifier: Apache-2.0
"""One model in two processes, each with half of the heads and a cache of its own, over gloo."""

from __future__ import annotations

import json

import pytest
from test_engine import expected_output
from tiny_models import make_gpt2, make_llama, random_prompts, torch

pytest.importorskip(
    "transformers.distributed", reason="this transformers has no tensor parallelism"
)
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)

LENGTHS = [160, 155, 150, 145]
NEW = 30
# Both ranks run it; what it appends to `said` comes back to the test.
PROGRAM = """
import json, os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from pyvattn import *
from pyvattn.integrations.transformers import Engine, generate_batch, spec_for

rank, said, prompts = int(sys.argv[1]), [], json.loads(sys.argv[4])
torch.set_num_threads(1)
torch.manual_seed(rank)
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
dist.init_process_group(
    "gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2,
    timeout=timedelta(seconds=120),
)
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[3], dtype=torch.float32, distributed_config=DistributedConfig(tp_plan="auto")
).eval()

def opened(memory, slots=4):
    spec = spec_for(model, max_slots=slots, max_tokens=512)
    options = {"page_size": "64K", "layout": "token", "read_ahead": 0}
    return KVCache(spec, device="cpu", memory=memory, **options)

def failure(call):
    try:
        call()
    except Error as error:
        return f"{type(error).__name__}: {error}"

"""
AFTER = """
print("SAID " + json.dumps(said), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def llama():
    # What is gathered from the ranks has to divide.
    return make_llama(vocab_size=98, head_dim=64)


@pytest.fixture
def ranks(two_ranks, tmp_path):
    """Run a body in two processes with a model; returns what each said, and how each ended."""

    def run(model, body):
        model.save_pretrained(tmp_path / "model")
        prompts = json.dumps(random_prompts(LENGTHS))
        return two_ranks(PROGRAM + body + AFTER, tmp_path / "meeting", tmp_path / "model", prompts)

    return run


def test_ranks_say_what_one_process_says_whatever_memory_each_has(llama, ranks):
    body = """
said.append(spec_for(model, 2, 64).kv_heads)
# Plenty for the first rank, room for the beginning of three requests for the other.
for preemption in ("recompute", "swap", "auto"):
    with opened("8MiB" if rank == 0 else "832KiB") as cache, Engine(
        model, cache, preemption=preemption
    ) as engine:
        requests = [engine.submit(prompt, 30) for prompt in prompts]
        engine.run()
        said.append([request.output for request in requests])
        counted = engine.preemptions()
        said.append([counted.recomputed, counted.swapped])
# Prompts that ran before are there on the first rank, and gone on the other.
with opened("8MiB" if rank == 0 else "832KiB") as cache, Engine(model, cache) as engine:
    for _ in range(2):
        for prompt in prompts[:3]:
            request = engine.submit(prompt, 5)
            engine.run()
            said.append(request.output)
# Each rank draws by itself, and the first one's draws count.
said.append([
    request.output
    for request in generate_batch(
        model, prompts, max_new_tokens=12, memory="8MiB", generation_config=None
    )
])
with opened("8MiB") as cache, Engine(model, cache) as engine:
    requests = [engine.submit(prompts[0], 12, do_sample=True, temperature=2.0),
                engine.submit(prompts[1], 12, do_sample=True, repetition_penalty=1.3)]
    engine.run()
    said.append([request.output for request in requests])
    said.append(failure(lambda: engine.submit([], 5)))
with opened("512KiB") as cache, Engine(model, cache) as engine:
    engine.submit(prompts[0] * 3, 5)  # 42 tokens in each of 8 pages
    said.append(failure(engine.run))
    request = engine.submit(prompts[0][:20], 5)
    engine.run()
    said.append(request.output)
"""
    (first, a), (second, b) = ranks(llama, body)
    assert (a, b) == (0, 0), (first, second)
    assert first == second
    heads, *said = first
    assert heads == 1
    prompts = random_prompts(LENGTHS)
    alone = [expected_output(llama, prompt, NEW) for prompt in prompts]
    for place in (0, 2, 4):
        assert said[place] == alone
    recomputed, swapped, _ = (said[place] for place in (1, 3, 5))
    assert recomputed[0] > 0 == recomputed[1]
    assert swapped[1] > 0
    assert said[6:12] == 2 * [tokens[:5] for tokens in alone[:3]]
    assert said[12] == [tokens[:12] for tokens in alone]
    assert said[13] != [tokens[:12] for tokens in alone[:2]], "draws"
    assert said[14].startswith("SpecError")
    assert said[15].startswith("OutOfMemory")
    assert said[16] == expected_output(llama, prompts[0][:20], 5)


@pytest.mark.parametrize("lost", [0, 1])
def test_the_rank_that_is_left_gets_an_error(llama, ranks, lost):
    body = f"""
with opened("8MiB") as cache:
    engine = Engine(model, cache)
    requests = [engine.submit(prompt, 30) for prompt in prompts]
    for _ in range(3):
        engine.step()
    if rank == {lost}:
        os._exit(7)
    said.append(failure(engine.run))
    said.append(failure(engine.step))
    engine.close()
    said.append(len(cache.live_slots()))
"""
    found = ranks(llama, body)
    assert found[lost][1] == 7, found
    said, code = found[1 - lost]
    assert code == 0, said
    assert said[0].startswith("RankError: a step of 2 ranks failed")
    assert said[1].startswith("RankError: a step failed before")
    assert said[2] == 0


def test_what_is_for_one_rank_alone_is_refused(llama, ranks):
    body = """
with opened("8MiB") as cache:
    for options in ({"compile": True}, {"graphs": True}, {"fuse_projections": True}):
        said.append(failure(lambda: Engine(model, cache, **options)))
    one = CacheSpec(3, 2, 64, "float32", max_slots=2, max_tokens=64)
    with KVCache(one, device="cpu", memory="8MiB") as whole:
        said.append(failure(lambda: Engine(model, whole)))
"""
    for said, code in ranks(llama, body):
        assert code == 0, said
        assert said[0].startswith("UnsupportedError: compile=True")
        assert said[1].startswith("UnsupportedError: graphs=True")
        assert "fuse_projections=True" in said[2]
        assert said[3].startswith("SpecError: the cache has kv_heads=2 and the model needs 1")


def test_a_plan_that_leaves_k_and_v_whole_is_refused(monkeypatch):
    from pyvattn import SpecError, UnsupportedError
    from pyvattn.integrations.transformers import spec_for

    model = make_llama()
    monkeypatch.setattr(model, "_tp_size", 4)
    with pytest.raises(SpecError, match="2 KV heads cannot be divided over 4 ranks"):
        spec_for(model, 2, 64)
    other = make_gpt2()
    monkeypatch.setattr(other, "_tp_size", 2)
    with pytest.raises(UnsupportedError, match="does not divide k_proj"):
        spec_for(other, 2, 64)
