# SPDX-License-Identifier: Apache-2.0
"""What a user sets, what is refused, and that nothing happens on import."""

from __future__ import annotations

import subprocess
import sys
import types
from types import MappingProxyType

import pytest

from pyvattn import ConfigError, UnsupportedError
from pyvattn.integrations.vllm.connectors import has_home_view
from pyvattn.integrations.vllm.options import Options
from pyvattn.integrations.vllm.refusals import check_config
from pyvattn.integrations.vllm.versions import check_version


def test_defaults_hold_where_nothing_is_said():
    assert Options.of({}) == Options.of({"other": 1}) == Options()


def test_options_are_read_from_additional_config():
    given = {"driver": "cumem", "page_size": "2M", "rows": 9, "map_in_background": False}
    assert Options.of({"pyvattn": given}) == Options("cumem", "2M", 9, False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drivers": "host"}, "no option 'drivers': use driver, page_size, rows"),
        ({"rows": 1}, "rows=1: use a whole number from 2"),
        ({"rows": True}, "rows=True"),
        ({"page_size": "3K"}, "page size '3K'"),
        ({"driver": 7}, "driver=7: use a driver's name"),
        ({"kernel": 7}, "kernel=7: use a kernel's name"),
        ({"map_in_background": "no"}, "map_in_background='no': use true or false"),
        ({"order_blocks": 1}, "order_blocks=1: use true or false"),
        ({"late_binding": 1}, "late_binding=1: use true or false"),
        ({"guarantee": "8GiB"}, "guarantee='8GiB' is of memory='shared': add that"),
        ({"memory": "shared", "budget": "much"}, "option budget 'much'"),
        ({"memory": "shared", "weights": "much"}, "option weights 'much'"),
        ({"weights": "8GiB"}, "weights='8GiB' is of memory='shared': add that"),
        ({"sleep_weights": False}, "sleep_weights=False is of memory='shared': add that"),
        ({"memory": "shared", "sleep_weights": 0}, "sleep_weights=0: use true or false"),
        ({"memory": "all"}, "memory='all': use own or shared"),
        ({"memory": "shared", "late_binding": True}, "late_binding=True keeps every block mapped"),
        ({"memory": "shared", "home_view": True}, "home_view=True keeps every block mapped"),
        ({"late_binding": True, "home_view": True}, "late_binding=True changes what stands behind"),
        ({"home_view": 1}, "home_view=1: use true or false"),
        ({"swap_memory": "much"}, "option swap_memory"),
        ({"swap": "never"}, "option swap='never': use auto or always"),
        ({"guard_tokens": -1}, "guard_tokens=-1: use a whole number from 0"),
        ("fast", "pyvattn='fast': use an object of options"),
    ],
)
def test_what_cannot_be_read_is_named(given, message):
    with pytest.raises(ConfigError, match=message):
        Options.of({"pyvattn": given})


def config(**changes):
    """A ``VllmConfig`` of which everything is supported, but for what is changed."""
    sections = {
        "additional_config": None,
        "speculative_config": None,
        "kv_transfer_config": None,
        "parallel_config": {"decode_context_parallel_size": 1, "prefill_context_parallel_size": 1},
        "cache_config": {"cache_dtype": "auto", "get_resolved_kv_cache_layout": None},
        "attention_config": {"backend": None},
        "model_config": {"enable_sleep_mode": False, "is_encoder_decoder": False},
    }
    for name, change in changes.items():
        known = sections[name]
        sections[name] = {**known, **change} if isinstance(known, dict) else change
    return types.SimpleNamespace(
        **{
            name: types.SimpleNamespace(**value) if isinstance(value, dict) else value
            for name, value in sections.items()
        }
    )


OFFLOAD = {"kv_connector": "OffloadingConnector"}
HOME_VIEW = MappingProxyType({"pyvattn": {"home_view": True}})


def several(*names):
    """A ``KVTransferConfig`` of vLLM's connector of connectors."""
    children = [{"kv_connector": name} for name in names]
    return {
        "kv_connector": "MultiConnector",
        "kv_connector_extra_config": {"connectors": children},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"speculative_config": {"method": "eagle3"}},
            "by eagle3: set method in --speculative-config to one of ngram, draft_model, eagle",
        ),
        (
            {"kv_transfer_config": {"kv_connector": "NixlConnector"}},
            "NixlConnector: set kv_connector in --kv-transfer-config to PyvattnSwapConnector, "
            "ExampleConnector or OffloadingConnector, or try with pyvattn's option home_view=true",
        ),
        (
            {"kv_transfer_config": several("OffloadingConnector", "NixlConnector")},
            "the KV connector NixlConnector: set",
        ),
        (
            {
                "kv_transfer_config": several("OffloadingConnector", "PyvattnSwapConnector"),
                "additional_config": HOME_VIEW,
            },
            "PyvattnSwapConnector within MultiConnector: use it alone",
        ),
        (
            {
                "kv_transfer_config": OFFLOAD,
                "additional_config": MappingProxyType({"pyvattn": {"home_view": False}}),
            },
            "OffloadingConnector without pyvattn's option home_view: leave it out",
        ),
        (
            {
                "kv_transfer_config": OFFLOAD,
                "additional_config": MappingProxyType({"pyvattn": {"late_binding": True}}),
            },
            "OffloadingConnector with pyvattn's option late_binding: set it false",
        ),
        (
            {
                "kv_transfer_config": OFFLOAD,
                "attention_config": {"backend": types.SimpleNamespace(name="CUSTOM")},
            },
            "CUSTOM with a KV connector or pyvattn's option home_view: leave one out",
        ),
        (
            {
                "additional_config": HOME_VIEW,
                "attention_config": {"backend": types.SimpleNamespace(name="CUSTOM")},
            },
            "CUSTOM with a KV connector or pyvattn's option home_view: leave one out",
        ),
        (
            {
                "kv_transfer_config": {"kv_connector": "PyvattnSwapConnector"},
                "additional_config": MappingProxyType({"pyvattn": {"memory": "shared"}}),
            },
            "KV connectors with pyvattn's option memory='shared'",
        ),
        (
            {"parallel_config": {"decode_context_parallel_size": 2}},
            "set --decode-context-parallel-size 1",
        ),
        (
            {"parallel_config": {"prefill_context_parallel_size": 2}},
            "set --prefill-context-parallel-size 1",
        ),
        ({"cache_config": {"cache_dtype": "turboquant"}}, "--kv-cache-dtype turboquant: use one"),
        ({"model_config": {"enable_sleep_mode": True}}, "leave out --enable-sleep-mode"),
        ({"model_config": {"is_encoder_decoder": True}}, "encoder-decoder models"),
    ],
)
def test_what_is_not_supported_names_the_option_to_change(changes, message):
    check_config(config())
    with pytest.raises(UnsupportedError, match=message):
        check_config(config(**changes))


def test_an_engine_that_shares_its_memory_may_sleep():
    check_config(
        config(
            model_config={"enable_sleep_mode": True},
            additional_config=MappingProxyType({"pyvattn": {"memory": "shared"}}),
        )
    )


def test_everything_that_is_in_the_way_is_named_at_once():
    changes = {
        "speculative_config": {"method": "medusa"},
        "kv_transfer_config": {"kv_connector": "NixlConnector"},
    }
    with pytest.raises(UnsupportedError, match=r"--speculative-config .*; .*--kv-transfer-config"):
        check_config(config(**changes))


def test_drafts_from_the_rows_and_the_connector_that_copies_them_are_taken():
    for method in ("ngram", "draft_model"):
        check_config(config(speculative_config={"method": method}))
    check_config(config(kv_transfer_config={"kv_connector": "PyvattnSwapConnector"}))


def test_connectors_that_were_tried_get_a_home_view_and_others_if_one_insists():
    offloads = config(kv_transfer_config=OFFLOAD)
    check_config(offloads)
    check_config(config(kv_transfer_config=several("OffloadingConnector", "ExampleConnector")))
    tries = config(
        kv_transfer_config={"kv_connector": "NixlConnector"}, additional_config=HOME_VIEW
    )
    check_config(tries)
    assert has_home_view(offloads)
    assert has_home_view(tries)
    assert has_home_view(config(additional_config=HOME_VIEW))
    assert not has_home_view(config())
    assert not has_home_view(config(kv_transfer_config={"kv_connector": "PyvattnSwapConnector"}))


def test_connectors_of_older_releases_are_refused():
    older = config(kv_transfer_config=OFFLOAD)
    del older.cache_config.get_resolved_kv_cache_layout
    with pytest.raises(UnsupportedError, match=r"OffloadingConnector with vLLM before 0\.32: use"):
        check_config(older)


def test_releases_that_were_not_tried_are_refused_unless_one_insists(monkeypatch):
    monkeypatch.delenv("PYVATTN_VLLM_ANY", raising=False)
    check_version("0.26.1")
    check_version("0.32.0+cpu")
    with pytest.raises(UnsupportedError, match=r"0\.33\.0 .*PYVATTN_VLLM_ANY=1 to try"):
        check_version("0.33.0")
    monkeypatch.setenv("PYVATTN_VLLM_ANY", "1")
    check_version("0.33.0")


def test_importing_the_names_imports_nothing_of_vllm():
    code = (
        "import sys, pyvattn.vllm, pyvattn.integrations.vllm as plugin; plugin.register(); "
        "sys.exit(any(m.split('.')[0] in ('vllm', 'torch') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_vllm_finds_the_plug_in_by_its_entry_point():
    from importlib.metadata import entry_points

    (found,) = [
        point for point in entry_points(group="vllm.general_plugins") if point.name == "pyvattn"
    ]
    assert found.value == "pyvattn.integrations.vllm:register"
    assert found.load()() is None
