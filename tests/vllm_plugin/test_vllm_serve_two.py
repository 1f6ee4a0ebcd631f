# SPDX-License-Identifier: Apache-2.0
"""Two ``vllm serve`` that share one budget, as ``scripts/serve_two.sh`` starts them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from re import findall
from runpy import run_path

import psutil
import pytest
from servers import PATIENCE, serve_two

from pyvattn.shared import create_ledger, read_ledgers

pytestmark = pytest.mark.skipif(
    find_spec("openai") is None, reason="the openai client comes with vLLM: make test-vllm"
)
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "two_engines.py"
BLOCK = 256 << 10
BLOCKS = 16
# One token a character: of each request, 8 blocks of 128.
PROMPTS = [chr(0x4E00 + i) * 900 for i in range(2)]


def used_blocks():
    (ledger,) = read_ledgers()
    return {member.name: member.used // BLOCK for member in ledger.members}


def test_each_has_what_it_needs_and_neither_is_left_behind(
    tiny_llama, tmp_path, monkeypatch, capsys
):
    from openai import OpenAI

    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("PYVATTN_RUNTIME_DIR", str(folder))
    create_ledger("cpu", budget=BLOCKS * BLOCK, chunk_size=BLOCK)
    with serve_two(tiny_llama, tmp_path) as servers:
        for server in servers:
            server.wait()
        assert used_blocks() == {"a": 1, "b": 1}
        said = []
        for server in servers:
            client = OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=PATIENCE)
            # The first keeps nearly all of the budget for later prompts, until the other asks.
            for prompt in PROMPTS:
                answer = client.completions.create(
                    model=tiny_llama, prompt=prompt, temperature=0, max_tokens=16
                )
                said.append(answer.choices[0].text)
        assert said[:2] == said[2:]
        used = used_blocks()
        assert used["b"] >= 9
        assert sum(used.values()) <= BLOCKS
        example = run_path(str(EXAMPLE))["main"]
        assert example([server.url for server in servers], PROMPTS) == [said[:2]] * 4
        turns = capsys.readouterr().out.splitlines()[1:]
        mebibytes = [list(map(int, findall(r"\b[ab] (\d+) MiB", turn))) for turn in turns]
        assert [a > b for a, b in mebibytes] == [True, False] * 2
        processes = servers[0].tree()
    assert not psutil.wait_procs(processes, timeout=0)[1]
    assert not read_ledgers()[0].members
