# SPDX-License-Identifier: Apache-2.0
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
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46]}

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


def test_offsets_count_and_a_time_without_one_is_utc(tmp_path):
    times = (
        "2023-11-16 18:00:00.5",
        "2023-11-16 18:00:01.1234567Z",
        "2023-11-16T20:00:02.25+02:00",
        "2023-11-16 13:30:03-0430",
    )
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{at},1,1\n" for at in times)
    trace = read_trace(write(tmp_path, text))
    assert [r.arrival for r in trace.requests] == pytest.approx([0, 0.6234567, 1.75, 2.5])


def test_rows_are_sorted_by_time_and_the_trace_says_so(tmp_path):
    header, one, two, three = AZURE.splitlines()
    mixed = read_trace(write(tmp_path, "\n".join([header, two, three, one])))
    assert [r.prompt for r in mixed.requests] == [374, 396, 879]
    assert mixed.requests[0].arrival == 0
    assert mixed.arrivals == "as recorded, sorted by time"
    first = read_trace(write(tmp_path, "\n".join([header, three, one])), limit=1)
    assert [r.prompt for r in first.requests] == [374]
    assert read_trace(write(tmp_path, AZURE)).arrivals == "as recorded"


def test_mooncake_traces_are_in_milliseconds(tmp_path):
    trace = read_trace(write(tmp_path, MOONCAKE))
    assert [(r.prompt, r.generated) for r in trace.requests] == [(6955, 52), (6472, 26)]
    assert [r.arrival for r in trace.requests] == pytest.approx([0, 3.053])


def test_traces_of_chats_are_in_seconds(tmp_path):
    lines = "".join(
        f'{{"chat_id": {i}, "timestamp": {at}, "input_length": 9, "output_length": 3}}\n'
        for i, at in enumerate((61.114, 61.5))
    )
    trace = read_trace(write(tmp_path, lines))
    assert [r.arrival for r in trace.requests] == pytest.approx([0, 0.386])


def test_the_times_of_vidurs_files_are_read(tmp_path):
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,100,20\n1.25,50,10\n"
    trace = read_trace(write(tmp_path, text))
    assert [r.arrival for r in trace.requests] == [0, 0.75]
    assert trace.arrivals == "as recorded"


def test_burst_gpt_is_in_seconds(tmp_path):
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    rows = "5,ChatGPT,472,18,490,Conversation log\n45.5,GPT-4,1087,230,1317,API log\n"
    trace = read_trace(write(tmp_path, f"{header}\n{rows}"))
    assert [(r.arrival, r.prompt, r.generated) for r in trace.requests] == [
        (0, 472, 18),
        (40.5, 1087, 230),
    ]


def test_only_the_end_of_a_line_ends_it(tmp_path):
    text = f'\n{MOONCAKE.splitlines()[0][:-1]}, "prompt": "one\u2028two\x85three"}}\r\n'
    path = tmp_path / "trace.jsonl"
    path.write_text(text, encoding="utf-8")
    assert [r.prompt for r in read_trace(path).requests] == [6955]


def test_a_byte_order_mark_is_skipped(tmp_path):
    for text in (AZURE, MOONCAKE):
        path = tmp_path / "trace"
        path.write_text(text, encoding="utf-8-sig")
        assert len(read_trace(path).requests) > 1


def test_a_limit_takes_the_first_requests(tmp_path):
    assert len(read_trace(write(tmp_path, AZURE), limit=2).requests) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("a,b\n1,2\n", "but a, b"),
        (AZURE.splitlines()[0], "no requests"),
        (AZURE.replace("396", "-3"), "line 3: ContextTokens '-3'"),
        (AZURE.replace(",55", ""), "line 4: GeneratedTokens ''"),
        (AZURE.replace("2023-11-16 18:16:51", "noon"), "line 4: TIMESTAMP 'noon'"),
        (AZURE.replace("6805900", "68059OO"), "line 2: TIMESTAMP"),
        ("\xff\xfe", "is not a trace"),
        (MOONCAKE.replace("6955", "0"), "line 1: input_length 0"),
        (MOONCAKE.replace("52", "5.2"), "line 1: output_length 5.2"),
        (MOONCAKE.replace("30535", '"soon"'), "line 2: timestamp 'soon'"),
        (MOONCAKE.replace("30535", "NaN"), "line 2: timestamp nan"),
        (MOONCAKE.replace("30535", "9" * 400), "line 2: timestamp 99"),
        (MOONCAKE.replace("30535", "1e16"), "line 2: timestamp 1e.16"),
        (MOONCAKE.replace("6955", "9" * 40), "line 1: input_length 99"),
        (
            AZURE.replace("2023-11-16 18:16:51", "0001-01-01 00:00:00+23:00"),
            "line 4: TIMESTAMP '0001",
        ),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\nsoon,1,1\n", "2: arrived_at 'soon'"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\ninf,1,1\n", "2: arrived_at 'inf'"),
        (MOONCAKE + "{", "line 4 is not a JSON object"),
        (MOONCAKE + "[1]", "line 4 is not a JSON object"),
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
