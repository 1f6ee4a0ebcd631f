# SPDX-License-Identifier: Apache-2.0
"""Refuses a config that says something about its cache that was not read.

Model families invent names for layers that differ and for heads that are
shared. One that is not known yet must not be taken for "every layer attends,
and every head has K and V": that is wrong by factors, and silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pyvattn.configs.families import MIXED
from pyvattn.configs.fields import Fields
from pyvattn.configs.layers import KEEPS_STATE
from pyvattn.errors import SpecError

# Names that say which layer does what, or how many K and V there are.
_LAYERS = re.compile(
    r"layer_types?$|layers?_block|block_(types?|configs?)$|(layer|override|attn|attention)_pattern"
    r"|attn_(layer|type|idx|ind)|attention_(layer|type)|attn_(idxs|layers)|hybrid"
    r"|cross_attention_(layer|freq)|_attention_interval$|per_layer_config|local_layer_ids"
    r"|attention_chunk_size|sliding_window_pattern$"
)
_HEADS = re.compile(
    r"(^|_)kv_(head|lora|group|channels|share|dim)|key_value|n_head_kv|attention_groups"
    r"|multi_query|^swa_(num_key|head|v_head)|global_(head_dim|num_key|key)|num_global"
    r"|head_dim$|dim_head$|^d_(kv|head)$|attn_config|heads_per_layer"
)
_SHARING = re.compile(r"kv_shar|share_kv|shared_kv|(^|_)cla(_|$)|cross_layer|yoco")
_EXTRA = re.compile(
    r"compress_(rat|rate)|^index_(topk|head|n_heads|k)|indexer|sparse_attention|nsa_"
)
# Names that belong to layers with a state: expected where some were found.
_STATES = re.compile(
    r"mamba|(^|_)ssm|rwkv|^lru|(^|_)rnn|recurrent|retention|(^|_)(kda|gdn)|^linear_(attn|num|key"
    r"|value|conv|head)|conv_(kernel|l_cache)|^conv1d|time_step|state_size"
)
# Classes whose layers have states whatever their list of layers says.
_STATES_EVERYWHERE = frozenset({"inkling_text", "zamba2"})
# Names like those above that say nothing about the cache of a decoder's layers.
_HARMLESS = re.compile(
    r"^(mtp|vision|audio|decoder_sparse|moe|mlp|encoder|expert)_|^(mlp_layer_types|cross_attention_"
    r"hidden_size|add_cross_attention|attention_type|no_rope_layers|position_embedding_type"
    r"|use_mla|qk_(nope_|rope_)?head_dim|rope_head_dim|pruned_heads|num_attention_heads_per_layer"
    r"|mamba_ssm_cache_dtype|number_of_conv_states|use_mamba_kernels|hybrid_layer_ids"
    r"|global_attn_every_n_layers|prefix_dense_sliding_window_pattern|time_step_(limit|floor|min|max))$"
)


def check_extras(fields: Fields) -> None:
    """Raise :class:`~pyvattn.errors.SpecError` where tokens have more than K and V, naming it.

    An indexer's keys, say, or K and V of several tokens in one.
    """
    for name, value in fields.given.items():
        if _EXTRA.search(name.lower()) and not _says_nothing(value):
            raise _refusal(fields, name, value, "more than K and V for each token")


def check_signs(fields: Fields, kinds: Iterable[str]) -> None:
    """Raise :class:`~pyvattn.errors.SpecError`, naming it, for a field that should have been read.

    ``kinds`` are the kinds of the model's layers.
    """
    # A class that has such fields has them in a model without such layers too.
    have_them = MIXED - _STATES_EVERYWHERE | {"lfm2", "lfm2_moe"}
    states = fields.model_type in have_them or not KEEPS_STATE.isdisjoint(kinds)
    for name, value in fields.given.items():
        if name in fields.read or _says_nothing(value) or _HARMLESS.search(name):
            continue
        if (why := _sign(name.lower(), states)) is not None:
            raise _refusal(fields, name, value, why)


def _refusal(fields: Fields, name: str, value: Any, why: str) -> SpecError:
    return SpecError(
        f"{name}={_short(value)} of the model config (model_type {fields.model_type!r}) is a sign "
        f"of {why}, and is not understood: give layers, kv_heads and head_dim by hand"
    )


def _sign(name: str, states: bool) -> str | None:
    if _LAYERS.search(name):
        return "layers that differ"
    if _SHARING.search(name):
        return "layers that share K and V"
    if _STATES.search(name):
        return None if states else "layers that keep a state in place of K and V"
    return "heads that share K and V, or are of another width" if _HEADS.search(name) else None


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value in (0, "", [], {}, ())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
