# SPDX-License-Identifier: Apache-2.0
"""Loads the demo's model from the GGUF file of the installed wheel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvattn.demo.dependencies import find_weights

if TYPE_CHECKING:
    from pyvattn.demo.prompts import Prompt


@dataclass(frozen=True)
class Chat:
    """A chat model with its tokenizer, as transformers' Auto classes load them."""

    model: Any
    tokenizer: Any

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end an answer, the same that ``model.generate`` stops at."""
        stop = self.model.generation_config.eos_token_id
        return frozenset([stop] if isinstance(stop, int) else stop or ())

    @property
    def pad_token(self) -> int:
        """A token to pad with; which one does not matter, since the mask hides it."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of the prompt in the model's chat format."""
        messages = [{"role": "user", "content": prompt.text}]
        encoded = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """Return the text of an answer."""
        text = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip()


def load_chat(weights: Path | None = None) -> Chat:
    """Load the model in float32; about 20 seconds on two cores, most of it dequantizing."""
    weights = weights or find_weights()
    # Everything is in the file: without this the library asks its hub for more.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        model = AutoModelForCausalLM.from_pretrained(
            weights.parent, gguf_file=weights.name, dtype=torch.float32
        )
    return Chat(model.eval(), tokenizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's own progress bars and advice out of the demo's display."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The GGUF reader draws a bar on stderr that no option turns off.
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
