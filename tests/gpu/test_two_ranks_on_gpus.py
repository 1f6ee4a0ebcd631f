# SPDX-License-Identifier: Apache-2.0
"""Two processes, each with a GPU and a cache of its own, over NCCL."""

# ruff: noqa: E402
from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

from nvidia_drivers import require
from test_engine import expected_output
from tiny_models import make_llama, random_prompts

# Both ranks run it; what it appends to `said` comes back to the test.
BEGIN = """
import json, os, sys, warnings
from datetime import timedelta
import torch
import torch.distributed as dist
from pyvattn import *

warnings.simplefilter("ignore", PlanWarning)
rank, said = int(sys.argv[1]), []
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
torch.cuda.set_device(rank)
torch.backends.cuda.matmul.allow_tf32 = False
dist.init_process_group(
    "nccl", init_method="file://" + sys.argv[2], rank=rank, world_size=2,
    timeout=timedelta(seconds=120), device_id=torch.device("cuda", rank),
)
"""
END = """
print("SAID " + json.dumps(said), flush=True)
torch.cuda.synchronize()
dist.destroy_process_group()
"""

MOVE = """
from pyvattn.transfers import receive, send
driver, layout = sys.argv[3:5]
spec = CacheSpec(3, 8, 128, "bfloat16", max_slots=2, max_tokens=4096)
with KVCache(spec, device=f"cuda:{rank}", driver=driver, layout=layout, memory="1GiB") as cache:
    def tokens(layer, part):
        torch.manual_seed(2 * layer + part)
        return torch.randn(3000, 8, 128).bfloat16()
    if rank == 0:
        slot = cache.admit(3000)
        for layer in range(3):
            for part, tensor in enumerate(cache.layer(layer)):
                tensor[slot.index, :3000] = tokens(layer, part)
        send(cache, slot, 1)
    else:
        other = cache.admit(100)  # its row is not the sender's
        slot = receive(cache, 0)
        said.append([slot.index, cache.length(slot)])
    said.append(all(
        torch.equal(tensor[slot.index, :3000].cpu(), tokens(layer, part))
        for layer in range(3)
        for part, tensor in enumerate(cache.layer(layer))
    ))
"""

GENERATE = """
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from pyvattn.integrations.transformers import Engine, spec_for
prompts, driver = json.loads(sys.argv[4]), sys.argv[5]
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[3], dtype=torch.float32, distributed_config=DistributedConfig(tp_plan="auto")
).eval()
said.append([str(model.device), spec_for(model, 2, 64).kv_heads])
spec = spec_for(model, max_slots=4, max_tokens=512)
# A request has a page of 2 MiB in each of 6 arenas: room for all, and for two.
for memory in ("1GiB", "24MiB"):
    options = {"driver": driver, "page_size": "2M", "layout": "layer", "memory": memory}
    with KVCache(spec, device=model.device, **options) as cache, Engine(model, cache) as engine:
        requests = [engine.submit(prompt, 30) for prompt in prompts]
        engine.run()
        said.append([request.output for request in requests])
"""


@pytest.fixture(autouse=True)
def two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    if not torch.distributed.is_nccl_available():
        pytest.skip("this torch has no NCCL")


@pytest.mark.parametrize("driver", ["cumem", "stock-uvm", "patched"])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_a_slot_goes_to_another_process_s_gpu(two_ranks, tmp_path, driver, layout):
    require(driver)
    program = BEGIN + MOVE + END
    (sent, first), (received, second) = two_ranks(program, tmp_path / "meeting", driver, layout)
    assert (first, second) == (0, 0), (sent, received)
    assert sent == [True]
    assert received == [[1, 3000], True]


@pytest.mark.parametrize("driver", ["cumem", "stock-uvm"])
def test_two_gpus_say_what_one_processor_says(two_ranks, tmp_path, driver):
    require(driver)
    model = make_llama(vocab_size=98, head_dim=64)
    model.save_pretrained(tmp_path / "model")
    prompts = random_prompts([160, 155, 150, 145])
    arguments = [tmp_path / "meeting", tmp_path / "model", json.dumps(prompts), driver]
    (first, a), (second, b) = two_ranks(BEGIN + GENERATE + END, *arguments)
    assert (a, b) == (0, 0), (first, second)
    assert (first[0], second[0]) == (["cuda:0", 1], ["cuda:1", 1])
    assert first[1:] == second[1:]
    expected = [expected_output(model, prompt, 30) for prompt in prompts]
    for said in first[1:]:
        assert said == expected
