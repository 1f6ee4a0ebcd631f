# SPDX-License-Identifier: Apache-2.0
"""``bench reuse``: what is cold, what is warm, and that the load is constant."""

import pytest

from pyvattn import ConfigError
from pyvattn.bench import reuse

# Llama-3-8B at 64K pages: 64 arenas, 32 tokens in a page.
_ARENAS = 64
CASES = ("layer, 64K", "layer, 2M", "token, 2M")


def write_trace(path, lengths):
    rows = "".join(f"{prompt},{generated}\n" for prompt, generated in lengths)
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + rows, encoding="ascii")
    return str(path)


def measures(trace, **options):
    chosen = reuse.Options(trace=trace, live=4, requests=64, **options)
    return {measure.name: measure for measure in reuse.measure(chosen)}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("reuse") / "equal.csv"
    return measures(write_trace(path, [(100, 40)] * 64), read_ahead=256)


class TestEqualRequests:
    def test_cold_every_request_maps_all_its_pages(self, found):
        # Four pages for the prompt in one call, the fifth in another.
        assert found["layer, 64K: cold, page by page"].value == 2 * _ARENAS
        # 16 tokens in a page: seven at once for the prompt, then one by one.
        assert found["token, 2M: cold, page by page"].value == 1 + 2

    def test_reading_ahead_saves_calls(self, found):
        assert found["layer, 64K: cold, read ahead"].value == _ARENAS

    @pytest.mark.parametrize("slack", ["tight", "+25 %", "+50 %"])
    def test_warm_nothing_is_mapped(self, found, slack):
        for case in CASES:
            assert found[f"{case}, memory {slack}: warm"].value == 0

    def test_only_the_largest_memory_is_judged(self, found):
        judged = [name for name, measure in found.items() if measure.ok is not None]
        assert judged == [
            f"{case}, memory +50 %: warm / cold"
            for case in ("layer, 64K", "layer, 2M", "token, 2M")
        ]


def test_requests_of_all_lengths_cost_calls_but_fewer_when_warm(tmp_path):
    lengths = [(40 + 97 * i % 900, 10 + 31 * i % 150) for i in range(64)]
    found = measures(write_trace(tmp_path / "mixed.csv", lengths))
    for case in ("layer, 64K", "token, 2M"):
        assert found[f"{case}, memory +50 %: warm"].value > 0
        assert found[f"{case}, memory +50 %: mean extent, warm"].value >= 1
        assert (
            found[f"{case}, memory +50 %: warm"].value < found[f"{case}, memory +10 %: warm"].value
        )


def test_too_few_requests_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="live=10"):
        list(reuse.measure(reuse.Options(trace=write_trace(tmp_path / "x.csv", [(9, 9)] * 40))))
