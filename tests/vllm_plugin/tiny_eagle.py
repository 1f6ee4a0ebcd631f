# SPDX-License-Identifier: Apache-2.0
"""An EAGLE head for the random Llama, most of whose drafts are right, as files.

It is the Llama itself, but for what EAGLE leaves out: the norms at its beginning and its end. It
makes nothing of the Llama's hidden states, and has embedding and vocabulary from there.
"""

from __future__ import annotations

import json

from tiny_vllm_model import CONFIG, weights


def write_eagle(folder):
    """Write what vLLM reads of a model that drafts; return the folder's name."""
    import torch
    from safetensors.torch import save_file

    hidden = CONFIG["hidden_size"]
    tensors = {
        name.removeprefix("model."): values
        for name, values in weights().items()
        if name.startswith("model.layers.")
    }
    del tensors["layers.0.input_layernorm.weight"]
    for name in ("q_proj", "k_proj", "v_proj"):
        # As the norm would: what is embedded has a length of about 1.
        tensors[f"layers.0.self_attn.{name}.weight"] *= hidden**0.5
    tensors["fc.weight"] = torch.cat((torch.eye(hidden), torch.zeros(hidden, hidden)), dim=1)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)
