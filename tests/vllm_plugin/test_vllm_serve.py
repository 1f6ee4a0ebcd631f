# SPDX-License-Identifier: Apache-2.0
"""An OpenAI client talks to ``vllm serve`` with the plug-in, whose engine is then killed."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from threading import Barrier

import psutil
import pytest
from engines import WORKER, engine
from servers import PATIENCE, serve, shared_memory

pytestmark = pytest.mark.skipif(
    find_spec("openai") is None, reason="the openai client comes with vLLM: make test-vllm"
)
NEW_TOKENS = 24
CLIENTS = 3


def prompts():
    """Texts of one character a token; the last three begin with the same 300."""
    draw = random.Random(0)

    def text(count):
        return "".join(chr(0x4E00 + draw.randrange(1000)) for _ in range(count))

    shared = text(300)
    return [text(7), text(130)] + [shared + text(count) for count in (5, 40, 90)]


def texts_of(model, **options):
    """Return what an engine in this process makes of :func:`prompts`, one after the other."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    with engine(model, **options) as llm:
        outputs = [llm.generate(prompt, sampling, use_tqdm=False)[0] for prompt in prompts()]
    return [output.outputs[0].text for output in outputs]


def complete(client, model, prompt, **options):
    return client.completions.create(
        model=model, prompt=prompt, temperature=0, extra_body={"ignore_eos": True}, **options
    )


def ask_until_it_fails(client, model, prompt, all_are_running):
    """Stream one completion after another; return the error that ends it."""
    is_first = True
    try:
        while True:
            for _ in complete(client, model, prompt, max_tokens=200, stream=True):
                if is_first:
                    is_first = False
                    all_are_running.wait(PATIENCE)
    except errors_of_a_connection() as error:
        return error


def errors_of_a_connection():
    """The errors of openai, and of the library beneath, which end a stream that breaks off."""
    from openai import DefaultHttpxClient, OpenAIError

    library = DefaultHttpxClient.__mro__[1].__module__.split(".")[0]
    return (OpenAIError, import_module(library).HTTPError)


def test_a_client_gets_stocks_text_and_a_killed_engine_leaves_nothing(tiny_llama, tmp_path):
    from openai import OpenAI

    with serve(tiny_llama, tmp_path) as server:
        stock = texts_of(tiny_llama)
        assert all(len(text) == NEW_TOKENS for text in stock)
        server.wait()
        assert "pyvattn: driver host" in server.said()
        client = OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=PATIENCE)
        whole = [
            complete(client, tiny_llama, prompt, max_tokens=NEW_TOKENS).choices[0].text
            for prompt in prompts()
        ]
        assert whole == stock
        streams = [
            complete(client, tiny_llama, prompt, max_tokens=NEW_TOKENS, stream=True)
            for prompt in prompts()
        ]
        assert ["".join(part.choices[0].text for part in each) for each in streams] == stock

        processes = server.tree()
        held = shared_memory(processes)
        all_are_running = Barrier(CLIENTS + 1)
        with ThreadPoolExecutor(CLIENTS) as clients:
            asked = [
                clients.submit(ask_until_it_fails, client, tiny_llama, prompt, all_are_running)
                for prompt in prompts()[:CLIENTS]
            ]
            all_are_running.wait(PATIENCE)
            server.engine().kill()
            errors = [each.result(PATIENCE) for each in asked]
        assert len(errors) == CLIENTS
        alive = psutil.wait_procs(processes, timeout=PATIENCE)[1]
        assert not alive
        assert held
        assert not [path for path in held if path.exists()]
    assert texts_of(tiny_llama, worker_cls=WORKER) == stock
