# SPDX-License-Identifier: Apache-2.0
"""An engine of transformers in a process of its own, under a lease."""

from __future__ import annotations

from tiny_models import make_llama

from pyvattn import KVCache, SharedMemory
from pyvattn.integrations.transformers import Engine, spec_for

NEW = 12
# A page of 128 tokens.
CHUNK = 64 << 10
CHUNKS = 16


def serve(pipe, name):
    """Run the prompts that come down the pipe, and send back what was said, until None comes."""
    model = make_llama(num_hidden_layers=4)
    memory = SharedMemory("cpu", budget=CHUNKS * CHUNK, chunk_size=CHUNK, name=name)
    with (
        memory,
        KVCache(
            spec_for(model, max_slots=16, max_tokens=512),
            device="cpu",
            memory=memory,
            page_size="64K",
            layout="token",
        ) as cache,
        Engine(model, cache) as engine,
    ):
        pipe.send(name)
        while (prompts := pipe.recv()) is not None:
            requests = [engine.submit(prompt, NEW) for prompt in prompts]
            engine.run()
            pipe.send([request.output for request in requests])
            # Idle from here on, with all that it keeps, until there is more to do.
            while not pipe.poll(0.01):
                engine.step()
