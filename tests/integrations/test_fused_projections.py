# SPDX-License-Identifier: Apache-2.0
"""Engines whose model multiplies by Q, K and V at once, and by gate and up."""

from __future__ import annotations

from functools import partial

import pytest
from test_compile import LENGTHS, assert_as_alone, fresh, graphs, serve  # noqa: F401
from test_engine import open_kv
from test_windows import tiny
from tiny_models import make_gpt2, make_llama, random_prompts, torch, transformers

from pyvattn import errors
from pyvattn.integrations.transformers import Engine, fused_projections, generate_batch

FUSED = {"fuse_projections": True}


class Products:
    """Counts the calls of torch's linear by the number of rows of its weight."""

    def __init__(self, monkeypatch):
        self.rows = []
        real = torch.nn.functional.linear

        def linear(x, weight, bias=None):
            self.rows.append(len(weight))
            return real(x, weight, bias)

        monkeypatch.setattr(torch.nn.functional, "linear", linear)
        monkeypatch.setattr(fused_projections, "linear", linear)


def storages(*layers):
    return {layer.weight.untyped_storage().data_ptr() for layer in layers}


def one_step(model, **options):
    with open_kv(model) as kv, Engine(model, kv, **options) as engine:
        engine.submit([1, 2, 3], 1)
        engine.step()


@pytest.mark.parametrize(
    "make",
    [
        make_llama,
        partial(make_llama, attention_bias=True, mlp_bias=True),
        partial(tiny, "Gemma3Text"),
        partial(tiny, "Qwen3"),
    ],
)
def test_requests_get_the_tokens_they_get_alone(make):
    model = make()
    assert_as_alone(model, serve(model, **FUSED))


def test_compiled_layers_are_fused_too_and_still_shared(graphs):  # noqa: F811
    few = make_llama(num_hidden_layers=2)
    assert_as_alone(few, serve(few, compile=True, **FUSED))
    count = len(graphs)
    torch.compiler.reset()
    serve(make_llama(num_hidden_layers=10), compile=True, **FUSED)
    assert len(graphs) == 2 * count > 0


def test_two_products_take_the_place_of_five(llama, monkeypatch):
    products = Products(monkeypatch)
    one_step(llama, **FUSED)
    # 8 heads of 8 and twice 2 of them; the output's; gate and up; down; the head of the model.
    assert products.rows == [96, 64, 192, 64] * llama.config.num_hidden_layers + [97]


def test_weights_are_held_once_and_keep_their_values(llama, tmp_path):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    attention, mlp = llama.model.layers[1].self_attn, llama.model.layers[1].mlp
    parameters = [id(parameter) for parameter in llama.parameters()]
    one_step(llama, **FUSED)
    assert [id(parameter) for parameter in llama.parameters()] == parameters
    for layers in (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (mlp.gate_proj, mlp.up_proj),
    ):
        assert len(storages(*layers)) == 1
        size = layers[0].weight.untyped_storage().nbytes()
        assert size == sum(layer.weight.nbytes for layer in layers)
    for name, value in llama.state_dict().items():
        assert torch.equal(value, before[name])
    llama.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in again.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_next_engine_moves_nothing(llama):
    one_step(llama, **FUSED)
    places = [parameter.data_ptr() for parameter in llama.parameters()]
    one_step(llama, **FUSED)
    assert [parameter.data_ptr() for parameter in llama.parameters()] == places


def test_the_model_is_as_it_was_between_steps(llama):
    layers = [(name, id(module)) for name, module in llama.named_modules()]
    with open_kv(llama) as kv, Engine(llama, kv, **FUSED) as engine:
        engine.submit([1, 2, 3], 2)
        engine.step()
        assert [(name, id(module)) for name, module in llama.named_modules()] == layers


def test_weights_that_are_written_afterwards_count(llama):
    """As an adapter that is merged does it."""
    with open_kv(llama, slots=8) as kv, Engine(llama, kv, **FUSED) as engine:
        with torch.no_grad():
            llama.model.layers[0].self_attn.k_proj.weight.mul_(-1)
        requests = [engine.submit(prompt, 12) for prompt in random_prompts(LENGTHS)]
        engine.run()
    assert_as_alone(llama, requests)


def test_layers_that_do_more_than_multiply_are_left_alone(llama, monkeypatch):
    class Adapter(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    first, second, third = llama.model.layers
    layer = first.self_attn.k_proj
    first.self_attn.k_proj = Adapter(layer.in_features, layer.out_features, bias=False)
    seen = []
    second.mlp.up_proj.register_forward_hook(lambda *a: seen.append(len(a)))
    weight = third.self_attn.v_proj.weight
    weight.data = weight.data.t().contiguous().t()
    products = Products(monkeypatch)
    one_step(llama, **FUSED)
    apart = [64, 16, 16, 64, 192, 64]
    assert products.rows == [*apart, 96, 64, 96, 96, 64, *apart, 97]
    assert seen


def test_a_model_that_asks_with_another_input_gets_its_own_product(llama):
    """Part of a product is taken for the very input that it was made of."""
    attention = llama.model.layers[0].self_attn
    fused = fused_projections.FusedProjections(llama)
    one, other = torch.randn(2, 1, 3, 64).unbind()
    expected = [layer(other) for layer in (attention.k_proj, attention.v_proj)]
    with fused.in_place(), torch.inference_mode():
        attention.q_proj(one)
        found = [attention.k_proj(other), attention.v_proj(other)]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_a_model_with_nothing_to_fuse_is_refused_by_name():
    with pytest.raises(
        errors.UnsupportedError, match=r"GPT2LMHeadModel has no q_proj, k_proj and v_proj, or"
    ):
        generate_batch(make_gpt2(), [[1, 2]], max_new_tokens=2, memory="64MiB", **FUSED)


def test_fuse_projections_is_yes_or_no(llama):
    with pytest.raises(errors.ConfigError, match="fuse_projections="):
        generate_batch(llama, [[1, 2]], max_new_tokens=2, memory="64MiB", fuse_projections="all")
