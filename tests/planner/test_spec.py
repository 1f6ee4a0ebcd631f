# SPDX-License-Identifier: Apache-2.0
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvattn import CacheSpec, ConfigError, SpecError

LLAMA3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
QWEN3_4B = {
    "head_dim": 128,
    "hidden_size": 2560,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "dtype": "bfloat16",
}
MISTRAL_7B = {
    "head_dim": None,
    "hidden_size": 4096,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "float16",
}
BERT = {
    "hidden_size": 768,
    "is_decoder": True,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
# num_hidden_layers is the encoder's.
WHISPER_DECODER = {
    "d_model": 1280,
    "decoder_attention_heads": 20,
    "decoder_layers": 4,
    "encoder_attention_heads": 16,
    "encoder_layers": 32,
    "is_encoder_decoder": False,
    "max_target_positions": 448,
    "model_type": "whisper",
    "num_hidden_layers": 32,
}
DEEPSEEK_V3 = {
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "num_attention_heads": 128,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "qk_rope_head_dim": 64,
    "torch_dtype": "bfloat16",
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}


def llama(**changes):
    return CacheSpec(**{"layers": 32, "kv_heads": 8, "head_dim": 128, **changes})


class TestSpec:
    def test_sizes_of_llama_3_8b(self):
        spec = llama()
        assert spec.tensor_token_bytes == 2048
        assert spec.token_bytes_per_layer == 4096
        assert spec.token_bytes == 128 << 10

    def test_a_row_holds_the_longest_request_and_the_guard(self):
        spec = llama(max_tokens=1000, guard_tokens=24)
        assert (spec.row_tokens, spec.row_bytes) == (1024, 1024 * (128 << 10))

    def test_sizes_of_deepseek_v3(self):
        spec = CacheSpec.mla(layers=61)
        assert spec.head_dim == 576
        assert spec.token_bytes == 61 * 576 * 2

    @pytest.mark.parametrize(
        ("dtype", "itemsize"),
        [("float32", 4), ("float16", 2), ("bf16", 2), ("float8_e4m3fn", 1), ("float8_e5m2", 1)],
    )
    def test_dtypes(self, dtype, itemsize):
        assert llama(dtype=dtype).itemsize == itemsize

    def test_a_torch_dtype_is_taken_by_its_name(self):
        class Dtype:
            def __str__(self):
                return "torch.float16"

        assert llama(dtype=Dtype()).dtype == "float16"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"layers": 0}, "layers=0"),
            ({"kv_heads": -1}, "kv_heads=-1"),
            ({"head_dim": 1.5}, "head_dim=1.5"),
            ({"max_slots": True}, "max_slots=True"),
            ({"max_tokens": "many"}, "max_tokens='many'"),
            ({"guard_tokens": -1}, "guard_tokens=-1"),
            ({"dtype": "int4"}, "int4.*float32"),
            ({"kind": "rwkv"}, "kind='rwkv'.*'mla'"),
            ({"latent_dim": 512}, "kind='mla'"),
            ({"kind": "mla"}, "latent_dim"),
            ({"kind": "mla", "latent_dim": 512}, r"CacheSpec\.mla"),
            ({"max_slots": 1 << 20, "max_tokens": 1 << 20}, "max_slots=1048576.*lower"),
        ],
    )
    def test_an_impossible_spec_is_refused_naming_the_value(self, changes, message):
        with pytest.raises(SpecError, match=message):
            llama(**changes)

    def test_specs_are_values(self):
        assert llama() == llama()
        assert len({llama(), llama(), llama(layers=4)}) == 2
        assert pickle.loads(pickle.dumps(llama())) == llama()
        with pytest.raises(AttributeError):
            llama().layers = 3

    @pytest.mark.parametrize(("ranks", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1)])
    def test_a_rank_holds_its_share_of_the_heads(self, ranks, heads):
        assert llama().shard(ranks).kv_heads == heads

    @pytest.mark.parametrize("ranks", [0, 3, 12, 1.0, True])
    def test_ranks_that_do_not_divide_the_heads_are_refused(self, ranks):
        with pytest.raises(SpecError):
            llama().shard(ranks)


class TestHuggingFaceConfig:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            (LLAMA3_8B, CacheSpec(32, 8, 128, "bfloat16", max_tokens=8192)),
            (QWEN3_4B, CacheSpec(36, 8, 128, "bfloat16", max_tokens=40960)),
            (MISTRAL_7B, CacheSpec(32, 8, 128, "float16", max_tokens=32768)),
            (DEEPSEEK_V3, CacheSpec.mla(layers=61, max_tokens=163840)),
            (GPT2, CacheSpec(12, 12, 64, "bfloat16", max_tokens=1024)),
        ],
        ids=["llama", "qwen", "mistral", "deepseek", "gpt2"],
    )
    def test_families(self, config, expected):
        assert CacheSpec.from_hf_config(config) == expected

    def test_a_multimodal_config_is_read_where_its_text_model_is(self):
        nested = {"model_type": "llava", "torch_dtype": "float16", "text_config": {**LLAMA3_8B}}
        del nested["text_config"]["torch_dtype"]
        assert CacheSpec.from_hf_config(nested) == CacheSpec(32, 8, 128, "float16", max_tokens=8192)

    def test_layers_that_keep_no_kv_are_not_counted(self):
        kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 9
        hybrid = {**QWEN3_4B, "layer_types": kinds}
        assert CacheSpec.from_hf_config(hybrid).layers == 9
        assert CacheSpec.from_hf_config({**QWEN3_4B, "num_kv_shared_layers": 16}).kept_layers == 20

    def test_early_falcon_has_one_kv_head(self):
        falcon = {
            "model_type": "falcon",
            "num_hidden_layers": 32,
            "hidden_size": 4544,
            "num_attention_heads": 71,
            "multi_query": True,
        }
        spec = CacheSpec.from_hf_config(falcon)
        assert (spec.kv_heads, spec.head_dim) == (1, 64)

    def test_overrides_and_ranks(self):
        spec = CacheSpec.from_hf_config(LLAMA3_8B, tensor_parallel=8, max_slots=7, dtype="float32")
        assert (spec.kv_heads, spec.max_slots, spec.dtype) == (1, 7, "float32")

    def test_a_path_of_a_file_or_its_folder(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(LLAMA3_8B))
        from_file = CacheSpec.from_hf_config(tmp_path / "config.json")
        assert from_file == CacheSpec.from_hf_config(str(tmp_path))
        assert from_file == CacheSpec.from_hf_config(LLAMA3_8B)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"model_type": "mystery"}, "'mystery'.*num_hidden_layers"),
            ({**LLAMA3_8B, "num_hidden_layers": "32"}, "num_hidden_layers='32'"),
            ({**LLAMA3_8B, "hidden_size": 4097}, "4097"),
            ({**DEEPSEEK_V3, "kv_lora_rank": "a"}, "kv_lora_rank='a'"),
            ({**LLAMA3_8B, "is_encoder_decoder": True}, "encoder-decoder"),
            ({**LLAMA3_8B, "torch_dtype": "int8"}, "int8"),
            ({**BERT, "is_decoder": False}, "'bert' are encoders.*is_decoder=true"),
            ({"model_type": "bert"}, "'bert' are encoders.*is_decoder=true"),
            ({"model_type": "bart"}, "'bart' have an encoder.*is_encoder_decoder=false"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, config, message):
        with pytest.raises(SpecError, match=message):
            CacheSpec.from_hf_config(config)

    def test_berts_that_are_decoders(self):
        spec = CacheSpec.from_hf_config(BERT)
        assert (spec.layers, spec.kv_heads, spec.head_dim, spec.max_tokens) == (12, 12, 64, 512)

    def test_decoders_of_encoder_decoders_have_sizes_of_their_own(self):
        spec = CacheSpec.from_hf_config(WHISPER_DECODER)
        assert (spec.layers, spec.kv_heads, spec.head_dim, spec.max_tokens) == (4, 20, 64, 448)

    def test_unknown_overrides_are_refused(self):
        with pytest.raises(SpecError, match="max_slot"):
            CacheSpec.from_hf_config(LLAMA3_8B, max_slot=3)

    @pytest.mark.parametrize("content", ["{", "[]", "\xff", "[" * 100000])
    def test_unreadable_files_are_refused(self, tmp_path, content):
        file = tmp_path / "config.json"
        file.write_bytes(content.encode("latin-1"))
        with pytest.raises(SpecError, match=r"config\.json"):
            CacheSpec.from_hf_config(file)

    def test_a_byte_order_mark_is_skipped(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(LLAMA3_8B), encoding="utf-8-sig")
        assert CacheSpec.from_hf_config(tmp_path) == CacheSpec.from_hf_config(LLAMA3_8B)

    def test_a_missing_file_names_the_path(self, tmp_path):
        with pytest.raises(SpecError, match="not downloaded"):
            CacheSpec.from_hf_config(tmp_path)


class TestGeometry:
    def test_layout_layer_has_a_k_and_a_v_arena_for_each_layer(self):
        geometry = llama().geometry("layer", "64K")
        assert geometry.arenas == 64
        assert geometry.token_bytes == 2048
        assert geometry.tokens_per_page == 32
        assert geometry.row_bytes == (131072 + 192) * 2048
        assert (geometry.views[3].k.arena, geometry.views[3].v.arena) == (6, 7)
        assert geometry.views[3].k.offset == geometry.views[3].v.offset == 0

    def test_layout_token_has_one_arena(self):
        geometry = llama().geometry("token", "2M")
        assert geometry.arenas == 1
        assert geometry.token_bytes == 128 << 10
        assert geometry.tokens_per_page == 16
        assert geometry.views[3].v.offset == 3 * 4096 + 2048

    def test_arenas_of_a_few_layers(self):
        geometry = llama().geometry("token", "64K", layers_per_arena=4)
        assert geometry.arenas == 8
        assert geometry.token_bytes == 4 * 4096
        assert geometry.layout_name == "token by 4"
        assert geometry.views[6].k.arena == 1
        assert geometry.views[6].k.offset == 2 * 4096

    def test_mla_shares_one_latent_tensor_between_k_and_v(self):
        spec = CacheSpec.mla(layers=61)
        for layout, arenas in (("layer", 61), ("token", 1)):
            geometry = spec.geometry(layout, "2M")
            assert geometry.arenas == arenas
            k, v = geometry.views[5].k, geometry.views[5].v
            assert (k.arena, k.offset, k.strides) == (v.arena, v.offset, v.strides)
            assert (k.shape[-1], v.shape[-1]) == (576, 512)

    def test_a_row_is_whole_pages_and_holds_the_guard(self):
        geometry = llama(max_tokens=1000, guard_tokens=100).geometry("layer", "2M")
        assert geometry.row_bytes == 4 << 20
        assert geometry.row_bytes == 2 * geometry.page_size
        assert geometry.pages(1000) == 1
        assert geometry.pages(1025) == 2
        assert geometry.pages(0) == 0

    @pytest.mark.parametrize(
        ("layout", "page_size", "group", "message"),
        [
            ("diagonal", "64K", None, "diagonal.*layer, token"),
            ("layer", "96K", None, "96K.*power of two"),
            ("layer", "2", None, "page size '2'"),
            ("layer", "4G", None, "4G"),
            ("layer", "64K", 4, "layout='token'"),
            ("token", "64K", 5, "32 layers.*1, 2, 4, 8, 16, 32"),
            ("token", "64K", 0, "layers_per_arena=0"),
        ],
    )
    def test_impossible_layouts_are_refused(self, layout, page_size, group, message):
        with pytest.raises(ConfigError, match=message):
            llama().geometry(layout, page_size, group)

    @given(
        layers=st.integers(1, 6),
        heads=st.integers(1, 3),
        dim=st.sampled_from([1, 3, 64]),
        mla=st.booleans(),
        layout=st.sampled_from(["layer", "token"]),
        data=st.data(),
    )
    def test_no_two_elements_share_an_address(self, layers, heads, dim, mla, layout, data):
        size = {"max_slots": 2, "max_tokens": 3, "guard_tokens": 1}
        spec = (
            CacheSpec.mla(layers=layers, latent_dim=dim, rope_dim=heads, **size)
            if mla
            else CacheSpec(layers, heads, dim, **size)
        )
        divisors = [d for d in range(1, layers + 1) if layers % d == 0]
        group = data.draw(st.sampled_from(divisors)) if layout == "token" else None
        geometry = spec.geometry(layout, "4K", group)
        assert geometry.arenas * geometry.token_bytes == spec.token_bytes
        seen = set()
        for views in geometry.views:
            for view in (views.k,) if mla else (views.k, views.v):
                for address in addresses(view, spec.itemsize):
                    assert 0 <= address[1] <= geometry.arena_bytes - spec.itemsize
                    assert address not in seen
                    seen.add(address)
        assert {arena for arena, _ in seen} == set(range(geometry.arenas))


def addresses(view, itemsize):
    """Yield (arena, byte) of every element of a view."""
    slots, tokens, heads, dim = view.shape
    for s in range(slots):
        for t in range(tokens):
            for h in range(heads):
                for d in range(dim):
                    steps = zip((s, t, h, d), view.strides, strict=True)
                    yield view.arena, view.offset + itemsize * sum(i * n for i, n in steps)
