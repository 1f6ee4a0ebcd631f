# SPDX-License-Identifier: Apache-2.0
"""Write the defaults of transformers' config classes to pyvattn/configs/families.py.

Configs on disk leave out what their class has by default, and transformers is
optional here. Run it with the newest release that the project knows.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FILE = Path(__file__).resolve().parents[1] / "pyvattn/configs/families.py"
BEGIN, END = "# begin generated\n", "# end generated\n"

# What pyvattn.configs asks for.
KEYS = (
    "num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_attention_heads", "n_head",
    "n_heads", "num_heads", "attention_heads", "num_key_value_heads", "num_kv_heads",
    "hidden_size", "n_embd", "d_model", "emb_dim", "head_dim", "attention_head_dim", "kv_channels",
    "dim_head", "max_position_embeddings", "n_positions", "multi_query", "kv_lora_rank",
    "qk_rope_head_dim", "num_kv_shared_layers", "attn_layer_period", "attn_layer_offset",
    "index_head_dim", "swa_num_key_value_heads", "swa_head_dim", "v_head_dim",
    "num_layers_per_stack", "attention_k_eq_v",
)  # fmt: skip


def decoders() -> dict[str, dict[str, Any]]:
    """Return the fields of every class that describes a decoder, with their defaults."""
    found = {}
    for kind in CONFIG_MAPPING:
        if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind.endswith(("_text", "_text_model")):
            config = CONFIG_MAPPING[kind]
            fields = {field.name: field.default for field in dataclasses.fields(config)}
            # BERT and its like can be decoders, and their heads are all given.
            bert = "type_vocab_size" in fields or kind.endswith("_text_model")
            cross = "cross_attention_layers" in fields
            if (cross or not bert) and fields.get("is_encoder_decoder") is not True:
                found[kind] = fields
    return dict(sorted(found.items()))


def differs(config_class: Any) -> bool:
    """Return whether the class makes layers that keep different things, if told nothing."""
    kinds = set(getattr(config_class(), "layer_types", None) or ())
    return bool(kinds - {"full_attention", "sliding_attention", "chunked_attention"})


def generated() -> str:
    """Return the table as Python source, one family a line, nulls left out."""
    rows = {
        kind: {key: value for key in KEYS if isinstance(value := fields.get(key), (bool, int))}
        for kind, fields in decoders().items()
    }
    mixed = sorted(kind for kind, row in rows.items() if row and differs(CONFIG_MAPPING[kind]))
    lines = [
        f'VERSION = "{transformers.__version__}"\n',
        "DEFAULTS: dict[str, dict[str, int]] = {\n",
    ]
    lines += [f'    "{kind}": {row!r},\n'.replace("'", '"') for kind, row in rows.items() if row]
    lines += ["}\n", "MIXED = frozenset({", ", ".join(f'"{kind}"' for kind in mixed), "})\n"]
    return "".join(lines)


def main() -> None:
    """Replace the generated part of the file, or with --check compare it."""
    text = FILE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    new = f"{head}{BEGIN}{generated()}{END}{tail}"
    if "--check" in sys.argv[1:]:
        sys.exit(None if new == text else f"{FILE} is not what this transformers says")
    FILE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
