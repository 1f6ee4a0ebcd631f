import itertools
import statistics

import pytest

from pyvattn import TraceError
from pyvattn.traces import read_trace, synthetic_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:51,879,55
"""
LENGTHS = """num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
3772,54,3826,69.85
2015,156,2171,12.91
3858,133,3991,29.00
"""


def write(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode("latin-1"))
    return path


def test_azure_traces_keep_their_arrivals(tmp_path):
    trace = read_trace(write(tmp_path, AZURE))
    assert [(r.prompt, r.generated) for r in trace.requests] == [(374, 44), (396, 109), (879, 55)]
    assert [r.arrival for r in trace.requests] == pytest.approx([0, 4.314579, 64.31941])
    assert trace.longest == 934
    assert not trace.synthetic


def test_a_trace_of_lengths_gets_seeded_arrivals(tmp_path):
    path = write(tmp_path, LENGTHS)
    one, same, other = (read_trace(path, rate=2, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert [r.arrival for r in one.requests] != [r.arrival for r in other.requests]
    assert [r.prompt for r in one.requests] == [3772, 2015, 3858]
    assert "seed 1" in one.arrivals


def test_a_limit_takes_the_first_requests(tmp_path):
    assert len(read_trace(write(tmp_path, AZURE), limit=2).requests) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none of the known headers"),
        ("a,b\n1,2\n", "but a, b"),
        (AZURE.splitlines()[0], "no requests"),
        (AZURE.replace("396", "-3"), "line 3: ContextTokens '-3'"),
        (AZURE.replace(",55", ""), "line 4: GeneratedTokens ''"),
        (AZURE.replace("2023-11-16 18:16:51", "noon"), "line 4: TIMESTAMP 'noon'"),
        ("\xff\xfe", "not a CSV trace"),
    ],
)
def test_what_cannot_be_read_is_refused_naming_the_line(tmp_path, text, message):
    with pytest.raises(TraceError, match=message):
        read_trace(write(tmp_path, text))


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_an_impossible_rate_is_refused(tmp_path, rate):
    with pytest.raises(TraceError, match="rate"):
        read_trace(write(tmp_path, LENGTHS), rate=rate)


def test_a_synthetic_trace_is_seeded_and_labelled():
    one, same, other = (synthetic_trace(500, seed=seed) for seed in (3, 3, 4))
    assert one == same
    assert one.requests != other.requests
    assert one.label.startswith("SYNTHETIC")
    arrivals = [r.arrival for r in one.requests]
    assert arrivals == sorted(arrivals)
    assert len({r.prompt for r in one.requests}) > 100


def test_synthetic_arrivals_have_the_rate_asked_for():
    trace = synthetic_trace(4000, rate=8.0, seed=1)
    gaps = [b.arrival - a.arrival for a, b in itertools.pairwise(trace.requests)]
    assert statistics.mean(gaps) == pytest.approx(1 / 8, rel=0.1)


def test_an_empty_synthetic_trace_is_refused():
    with pytest.raises(TraceError):
        synthetic_trace(0)
