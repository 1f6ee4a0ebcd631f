# SPDX-License-Identifier: Apache-2.0
"""``bench offload``: how many copies it counts, what it compares, and that blocks arrive."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch", reason="the bench copies with torch")

from pyvattn.bench import block_copies, offload, vllm_offload  # noqa: E402
from pyvattn.bench.report import Setup  # noqa: E402
from pyvattn.errors import ConfigError, DriverError, MissingDependency  # noqa: E402

LAYERS = 3


def measures(layout, driver="host"):
    options = offload.Options(driver=driver, layout=layout, tokens=64, layers=LAYERS, rounds=3)
    return {found.name.removeprefix("64 tokens"): found for found in offload.measure(options)}


@pytest.fixture(scope="module")
def found():
    return measures("layer")


@pytest.mark.parametrize("way", [" out", " back"])
class TestEachWay:
    def test_a_copy_for_k_and_for_v_of_each_layer(self, found, way):
        copies = found[f"{way}: copies"]
        assert (copies.value, copies.ok) == (2 * LAYERS, True)

    def test_every_kind_is_timed_and_set_against_one_copy(self, found, way):
        kinds = ["rows", "blocks of 16 tokens", *["rows, mapped anew"][: way == " back"]]
        assert all(found[f"{way}: {kind}"].unit == "GB/s" for kind in ["one copy", *kinds])
        for kind in kinds:
            ratio = found[f"{way}: rate of {kind} / one copy"]
            assert ratio.value > 0
            assert ratio.rounds == 3
            # What the host's pages take when they are first touched is nobody's target.
            assert ratio.ok is None

    def test_a_copy_for_each_arena_where_layers_lie_side_by_side(self, way):
        assert measures("token", "cumem-emulated")[f"{way}: copies"].value == 1


def test_a_restore_that_maps_first_is_counted_too(found):
    # So few tokens are mapped in one piece.
    assert found[" back: copies of rows, mapped anew"].value == 2 * LAYERS


def test_blocks_come_back_to_where_they_were():
    there = torch.arange(4096).to(torch.uint8)
    here = torch.zeros_like(there)
    written = there.clone()
    copies = block_copies.BlockCopies(there, here, 64)
    copies.there()
    assert not torch.equal(here, written), "blocks lie in another order on the host"
    # A block is of one piece, and each came.
    assert sorted(map(tuple, here.view(-1, 64).tolist())) == sorted(
        map(tuple, written.view(-1, 64).tolist())
    )
    there.zero_()
    copies.back()
    assert torch.equal(there, written)


def test_a_copy_that_fails_is_an_error(monkeypatch):
    codes = iter([0, 700])
    monkeypatch.setattr(block_copies, "_copy", lambda *_: next(codes))
    two = torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(DriverError, match="700"):
        block_copies.BlockCopies(two, two.clone(), 1).there()


def test_half_a_block_is_refused():
    with pytest.raises(ConfigError, match="multiple of 16"):
        list(offload.measure(offload.Options(driver="host", tokens=40)))


class TestBesideVllm:
    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []

        class Transfers:
            def __init__(self, buffer, layers, token_bytes, setting):
                assert buffer.numel() == 256 * token_bytes
                self.in_words, self._name = f"{layers} copies", setting.name

            def out(self):
                calls.append((self._name, "out"))

            def back(self):
                calls.append((self._name, "back"))

            def close(self):
                calls.append((self._name, "close"))

        monkeypatch.setattr(vllm_offload, "VllmOffload", Transfers)
        monkeypatch.setattr(offload, "_checked_vllm", lambda _: "0.26.0")
        return calls

    def test_each_setting_is_timed_by_turns_and_set_against_ours(self, calls):
        options = offload.Options(
            driver="host", tokens=256, layers=LAYERS, rounds=3, against="vllm"
        )
        setup, *measured = offload.measure(options)
        assert setup == Setup("vllm", {"version": "0.26.0"})
        found = {one.name: one for one in measured}
        for name in (one.name for one in vllm_offload.SETTINGS):
            # One round trip before the rounds, then one in each.
            assert [way for who, way in calls if who == name] == ["out", "back"] * 4 + ["close"]
            for way in ("out", "back"):
                assert found[f"256 tokens {way}: {name}"].note == f"{LAYERS} copies"
                assert found[f"256 tokens {way}: rate of {name} / one copy"].ok is None
                assert found[f"256 tokens {way}: rate of rows / {name}"].rounds == 3

    def test_it_is_refused_where_it_could_not_run(self, monkeypatch):
        def refused(**options):
            return list(offload.measure(offload.Options(**options)))

        with pytest.raises(ConfigError, match="against='sglang': use 'vllm'"):
            refused(against="sglang")
        with pytest.raises(ConfigError, match="driver='host': vLLM's offload copies between a GPU"):
            refused(driver="host", against="vllm")
        with pytest.raises(ConfigError, match=r"tokens=272: .* multiple of 256"):
            refused(tokens=272, against="vllm")
        monkeypatch.setitem(sys.modules, "vllm", None)
        with pytest.raises(MissingDependency, match=r"needs vLLM 0\.26 or later"):
            refused(against="vllm")
