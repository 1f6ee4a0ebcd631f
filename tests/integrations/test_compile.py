# SPDX-License-Identifier: Apache-2.0
"""Engines whose model has its decoder layers compiled."""

from __future__ import annotations

from functools import partial

import pytest
from test_engine import expected_output, open_kv
from test_windows import tiny
from tiny_models import make_gpt2, make_llama, random_prompts, torch

from pyvattn import errors
from pyvattn.integrations.transformers import Engine, compiled_layers, generate_batch

LENGTHS = (3, 17, 9, 40)


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is compiled before a test, and nothing stays afterwards."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are compiled, which run as they were traced: that takes no time."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled_layers.torch, "compile", partial(torch.compile, backend=backend))
    return traced


def serve(model, **options):
    with (
        open_kv(model, slots=8) as kv,
        Engine(model, kv, max_prefill_tokens=16, **options) as engine,
    ):
        requests = [engine.submit(prompt, 12) for prompt in random_prompts(LENGTHS)]
        engine.run()
    return requests


def assert_as_alone(model, requests):
    for request in requests:
        assert request.output == expected_output(model, request.prompt, request.max_new_tokens)


# torch's compiler imports what torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_model_compiled_by_torchs_own_compiler_says_the_same():
    model = make_llama(num_hidden_layers=2)
    assert_as_alone(model, serve(model, compile=True))


@pytest.mark.parametrize("build", [make_llama, partial(tiny, "Gemma3Text")])
def test_every_kind_of_layer_and_of_batch(build, graphs):
    model = build()
    assert_as_alone(model, serve(model, compile=True))
    assert graphs


def test_layers_share_what_is_compiled(graphs):
    serve(make_llama(num_hidden_layers=2), compile=True)
    few = len(graphs)
    torch.compiler.reset()
    serve(make_llama(num_hidden_layers=10), compile=True)
    assert len(graphs) == 2 * few > 0


def test_the_model_is_as_it_was_between_steps(llama, graphs):
    def own(*args, **options):
        return type(llama.model.layers[1]).forward(llama.model.layers[1], *args, **options)

    llama.model.layers[1].forward = own
    with open_kv(llama) as kv, Engine(llama, kv, compile=True) as engine:
        engine.submit([1, 2, 3], 2)
        engine.step()
        assert "forward" not in vars(llama.model.layers[0])
        assert llama.model.layers[1].forward is own
    assert graphs


def test_nothing_is_compiled_unasked(llama, graphs):
    serve(llama)
    assert not graphs


def test_a_compiler_that_fails_is_named(llama, monkeypatch):
    def backend(graph, inputs):
        raise OSError("no compiler")

    monkeypatch.setattr(compiled_layers.torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(errors.UnsupportedError, match=r"OSError: no compiler: use compile=False"):
        generate_batch(llama, [[1, 2]], max_new_tokens=2, memory="64MiB", compile=True)
    assert "forward" not in vars(llama.model.layers[0])
    generate_batch(llama, [[1, 2]], max_new_tokens=2, memory="64MiB")


def test_a_model_without_a_list_of_layers():
    with pytest.raises(errors.UnsupportedError, match=r"GPT2LMHeadModel.*: use compile=False"):
        generate_batch(make_gpt2(), [[1, 2]], max_new_tokens=2, memory="64MiB", compile=True)


def test_compile_is_yes_or_no(llama):
    with pytest.raises(errors.ConfigError, match="compile="):
        generate_batch(llama, [[1, 2]], max_new_tokens=2, memory="64MiB", compile="max-autotune")
