# SPDX-License-Identifier: Apache-2.0
"""Two vLLM servers that share one GPU's memory for KV: load one, then the other, and see it move.

PYVATTN_SHARED_BUDGET=60GiB scripts/serve_two.sh MODEL_A MODEL_B    # in another terminal
python examples/two_engines.py http://127.0.0.1:8001 http://127.0.0.1:8002
"""

from __future__ import annotations

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyvattn.shared import read_ledgers


def ask(url: str, path: str, **body: Any) -> Any:
    """Return what the server's OpenAI API says to a GET, or to a POST where there is a body."""
    data = json.dumps(body).encode() if body else None
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as answer:
        return json.load(answer)


def load(url: str, prompts: list[str]) -> list[str]:
    """Send all prompts at once; return what the model says to each."""
    model = ask(url, "/v1/models")["data"][0]["id"]

    def complete(prompt: str) -> str:
        body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}
        return str(ask(url, "/v1/completions", **body)["choices"][0]["text"])

    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(complete, prompts))


def held() -> str:
    """Say what each engine has of the memory that they share."""
    (ledger,) = read_ledgers()
    return ", ".join(f"{each.name} {each.used >> 20} MiB" for each in ledger.members)


def main(urls: list[str], prompts: list[str]) -> list[list[str]]:
    """Load each server in turn, twice: one keeps prompts until the other needs the memory."""
    print("idle:", held())
    said = []
    for url in urls * 2:
        said.append(load(url, prompts))
        print(f"{url} had {len(prompts)} requests:", held())
    return said


if __name__ == "__main__":
    main(sys.argv[1:], [f"{number}. Once upon a time " * 100 for number in range(16)])
