# SPDX-License-Identifier: Apache-2.0
"""The bench that serves the same requests through both engines, at a size for the CPU."""

from __future__ import annotations

from contextlib import closing
from typing import ClassVar

import pytest
import transformers
from tiny_models import torch

import pyvattn.bench.transformers as module
from pyvattn.bench import engines, random_model, stock_vllm
from pyvattn.bench.engines import Library, Ours
from pyvattn.bench.report import Setup
from pyvattn.bench.serving import Load, Run, percentile, poisson
from pyvattn.bench.stock_vllm import StockVllm
from pyvattn.bench.transformers import Options, measure
from pyvattn.bench.vllm_engine import EngineFailed
from pyvattn.errors import ConfigError, DriverUnavailable, UnsupportedError

pytest.importorskip("psutil", reason="transformers counts the host's memory with psutil")

SMALL = {
    "model": "tiny",
    "device": "cpu",
    "requests": 3,
    "prompt_tokens": 20,
    "new_tokens": 8,
    "rounds": 1,
}
# What the library calls SDPA over its own pages: "paged|sdpa" up to 5.17, "sdpa" since.
SDPA = {"paged|sdpa", "sdpa"}


def bench(**options):
    """Return the baseline's setup and the measures by name."""
    found = list(measure(Options(**SMALL, **options)))
    (setup,) = (one for one in found if isinstance(one, Setup))
    return setup.values, {one.name: one for one in found if not isinstance(one, Setup)}


@pytest.fixture
def tiny():
    return random_model.make_model("tiny", "cpu")


def load(arrivals, new_tokens=4, seed=1):
    prompts = random_model.make_prompts("tiny", len(arrivals), 12, seed)
    return Load(prompts, arrivals, new_tokens)


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_both_engines_give_the_same_tokens_and_every_rate_is_there():
    baseline, found = bench()
    size = "3 x (20 + 8) tokens"
    theirs = baseline["name"]
    assert theirs == f"transformers, {baseline['attention']}"
    for title in ("output, while all decode", "output, whole run", "all prompts"):
        ours = found[f"ours, {size}: {title}"]
        library = found[f"{theirs}, {size}: {title}"]
        ratio = found[f"ours / {theirs}, {size}: {title}"]
        assert ratio.value == pytest.approx(ours.value / library.value)
        assert "no CUDA graph" in ours.note
    assert found["requests with the same tokens from both, first round"].ok is True
    # A tiny layer has 64 x (64 + 2 x 16 + 64) + 3 x 64 x 96 weights and two norms of 64; the head
    # 64 x 97. Each token of K and V takes 2 x 2 x 8 numbers a layer.
    weights = 4 * (3 * (64 * 160 + 3 * 64 * 96 + 2 * 64) + 64 + 64 * 97)
    kv = 3 * (20 + 8 / 2) * 4 * 3 * 2 * 2 * 8
    rate = found[f"ours, {size}: output, while all decode"].value / 3
    read = found["ours: weights and KV read while all decode"].value
    assert read == pytest.approx((weights + kv) * rate / 1e9)
    work = 3 * 20 * (2 * 3 * (64 * 160 + 3 * 64 * 96 + 2 * 64) + 2 * 20 * 64 * 3)
    seconds = found[f"ours, {size}: all prompts"].value
    done = found["ours: arithmetic until every prompt is done"].value
    assert done == pytest.approx(work / seconds / 1e12)
    assert 0 <= found["ours: share of the run that waits for mapping"].value < 100


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("against", ["library", "sdpa"])
def test_the_baseline_is_named_with_its_settings_and_releases(against):
    baseline, _ = bench(against=against)
    # Without a GPU the library has nothing better than SDPA, whatever is asked for.
    assert baseline["attention"] in SDPA
    assert baseline["settings"]["use_cuda_graph"] == (False, False)
    assert baseline["settings"]["use_async_batching"] is False
    assert baseline["versions"]["transformers"] == transformers.__version__
    assert baseline["versions"]["torch"] == torch.__version__


class FakeVllm:
    """An engine that says a token a tenth of a second."""

    name, attention, settings = "vLLM 9", "its own", {"block_size": 16}

    def __init__(self, load, **asked):
        self.asked, self.closed, self.served = asked, False, []

    def run(self, load):
        self.served.append(load)
        count, prompts = load.new_tokens, load.prompts
        times = [[1 + 0.1 * (at + 1) for at in range(count)] for _ in prompts]
        return Run([[7] * count for _ in prompts], times, 1.0, load.arrivals)

    def close(self):
        self.closed = True


def test_vllm_stands_in_for_the_library(monkeypatch):
    """It counts free memory when it starts, so it is there before our model is."""
    made, order = [], []

    def start(load, **asked):
        order.append("vLLM")
        made.append(FakeVllm(load, **asked))
        return made[0]

    def make(*arguments, **options):
        order.append("model")
        return random_model.make_model(*arguments, **options)

    monkeypatch.setattr(module, "StockVllm", start)
    monkeypatch.setattr(module, "make_model", make)
    baseline, found = bench(against="vllm")
    assert order == ["vLLM", "model"]
    assert made[0].asked == {"model": "tiny", "layers": 0, "device": "cpu"}
    assert made[0].closed
    assert len(made[0].served) == 2
    assert (baseline["name"], baseline["settings"]) == ("vLLM 9", {"block_size": 16})
    decode = found["ours / vLLM 9, 3 x (20 + 8) tokens: output, while all decode"]
    prompts = found["ours / vLLM 9, 3 x (20 + 8) tokens: all prompts"]
    # Three tokens in each of the tenths behind the first.
    theirs = found["vLLM 9, 3 x (20 + 8) tokens: output, while all decode"].value
    assert theirs == pytest.approx(30)
    assert (decode.at_least, decode.at_most) == (0.95, None)
    assert (prompts.at_least, prompts.at_most) == (None, 1 / 0.95)
    # Its weights are others, so its tokens are.
    assert not any("same tokens" in name for name in found)


class FakeEngine:
    """What StockVllm starts."""

    made: ClassVar[list] = []

    def __init__(self, name, model, layers, options):
        self.options, self.closed = options, False
        self.made.append(self)

    def wait(self):
        if self.options["max_model_len"] == 13:
            raise EngineFailed("stock: no")
        return "9"

    def close(self):
        self.closed = True


def test_vllm_gets_memory_for_the_requests(monkeypatch):
    monkeypatch.setattr(stock_vllm, "Engine", FakeEngine)
    asked = {"model": "llama-3-8b", "layers": 2, "device": "cuda:0"}
    baseline = StockVllm(Load([[1] * 100] * 3, [0.0] * 3, 28), **asked)
    assert baseline.name == "vLLM 9"
    # Two layers of K and V with 8 heads of 128 in bfloat16.
    kv = 3 * 128 * 2 * 2 * 8 * 128 * 2
    assert kv < baseline.settings["kv_cache_memory_bytes"] - (1 << 30) < 1.2 * kv
    assert baseline.settings["max_model_len"] == 128
    baseline.close()
    assert FakeEngine.made[-1].closed
    with pytest.raises(EngineFailed):
        StockVllm(Load([[1] * 10], [0.0], 3), **asked)
    assert FakeEngine.made[-1].closed


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"), ({"model": "tiny"}, "use 'llama-3-8b'")],
)
def test_what_vllm_does_not_serve_here_is_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        StockVllm(
            Load([[1]], [0.0], 2), **{"model": "llama-3-8b", "layers": 0, "device": "cuda", **asked}
        )


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_requests_that_arrive_one_by_one_have_latencies():
    baseline, found = bench(rate=50.0, seed=3)
    size = "3 x (20 + 8) tokens, 50 a second (Poisson, seed 3)"
    for title, unit in (
        ("output, whole run", "tokens/s"),
        ("time to the first token, p50", "ms"),
        ("time to the first token, p99", "ms"),
        ("time per output token, p50", "ms"),
        ("time per output token, p99", "ms"),
        ("time between two tokens, p99", "ms"),
    ):
        ours, library = (found[f"{who}, {size}: {title}"] for who in ("ours", baseline["name"]))
        assert ours.unit == library.unit == unit
        ratio = found[f"ours / {baseline['name']}, {size}: {title}"].value
        assert ratio == pytest.approx(ours.value / library.value)
    assert found["requests with the same tokens from both, first round"].ok is True
    assert not any("while all decode" in name for name in found)


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("engine", ["ours", "library"])
def test_no_request_starts_before_it_has_arrived(tiny, engine):
    """The last one arrives long after the first two are done, and both engines wait for it."""
    requests = load([0.0, 0.0, 0.4])
    if engine == "ours":
        made = Ours(tiny, requests, device="cpu", driver="auto", page_size="auto", layout="auto")
    else:
        made = Library(tiny, requests, against="library", compile_level=0)
    try:
        made.run(load([0.0, 0.0, 0.0], seed=2))
        run = made.run(requests)
    finally:
        made.close()
    assert [len(tokens) for tokens in run.tokens] == [4, 4, 4]
    assert run.arrivals == [0.0, 0.0, 0.4]
    assert run.times[2][0] - run.began > 0.4
    assert run.to_first[2] == pytest.approx(run.times[2][0] - run.began - 0.4)
    assert min(run.to_first) > 0


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_request_that_the_library_fails_is_an_error(tiny, monkeypatch):
    requests = load([0.0, 0.0])
    library = Library(tiny, requests, against="library", compile_level=0)

    def fail(*_, **__):
        raise RuntimeError("no such kernel")

    try:
        library.run(requests)
        monkeypatch.setattr(tiny, "forward", fail)
        with pytest.raises(UnsupportedError, match=r"of 2 requests .*no such kernel"):
            library.run(requests)
    finally:
        library.close()


def test_rates_count_the_tokens_of_the_moments_that_they_are_about():
    """One request starts at 1 s and one at 3 s; from 3 to 6 s both decode."""
    times = [[11, 12, 13, 14, 15, 16], [13, 14, 15, 16, 17]]
    run = Run([[7] * 6, [7] * 5], times, 10, [0, 2], waited=1.75)
    assert run.first == 3
    assert run.decode == pytest.approx(6 / 3)
    assert run.whole == pytest.approx(11 / 7)
    assert run.to_first == [1, 1]
    assert run.waiting == pytest.approx(0.25)


def test_the_time_of_a_token_is_that_of_its_request_and_gaps_are_of_all():
    run = Run([[7] * 3, [7] * 2], [[1, 2, 5], [1, 7]], 0, [0, 0])
    assert run.per_token == [2, 6]
    assert run.gaps == [1, 3, 6]


def test_a_run_in_which_never_all_decode_has_no_such_rate():
    run = Run([[7] * 2, [7] * 2], [[1, 2], [2, 3]], 0, [0, 0])
    with pytest.raises(ConfigError, match="--new-tokens"):
        assert run.decode


def test_arrivals_are_seeded_and_as_many_a_second_as_asked_for():
    times = poisson(4000, 25.0, seed=1)
    assert times == poisson(4000, 25.0, seed=1) == sorted(times)
    assert times != poisson(4000, 25.0, seed=2)
    assert times[-1] == pytest.approx(4000 / 25, rel=0.05)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    # Exponential: the share of gaps longer than the mean is 1/e.
    assert sum(gap > 1 / 25 for gap in gaps) / 4000 == pytest.approx(0.368, abs=0.03)
    assert poisson(3, 0.0, seed=1) == [0.0, 0.0, 0.0]


def test_percentiles_lie_among_the_values():
    values = list(range(101))
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99


def test_a_round_that_would_end_too_late_is_not_begun(monkeypatch):
    """Each engine takes 5 s of a clock that only they move; the first round is never left out."""
    import pyvattn.bench.transformers as module

    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    class Slow:
        def run(self, load):
            now[0] += 5
            return load

    def rounds(seconds):
        now[0] = 0.0
        options = Options(**{**SMALL, "rounds": 9, "seconds": seconds})
        return len(list(module._serve(options, Slow(), Slow(), 0.0)))

    assert rounds(0) == 10
    assert rounds(1) == 2
    assert rounds(45) == 4


@pytest.mark.parametrize(("kernel", "tokens"), [("flash-attn-3", 192), ("flash-attn-3-paged", 0)])
def test_our_cache_has_the_guard_of_the_kernel_that_is_named(tiny, kernel, tokens):
    engine = Ours(
        tiny, load([0.0]), device="cpu", driver="auto", page_size="auto", layout="auto",
        guard_for=kernel,
    )  # fmt: skip
    with closing(engine):
        assert engine.cache.spec.guard_tokens == tokens


def test_every_round_has_prompts_of_its_own_and_the_same_arrivals():
    one, two = (module._load(Options(**SMALL, rate=5.0), turn) for turn in (0, 1))
    assert one.prompts != two.prompts
    assert one.arrivals == two.arrivals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt-5"}, "gpt-5"),
        ({"new_tokens": 1}, "new_tokens=1"),
        ({"device": "tpu"}, "tpu"),
        ({"against": "eager"}, "eager"),
        ({"rounds": 0}, "rounds=0"),
        ({"rate": -1.0}, "rate=-1"),
        ({"rate": 1.0, "requests": 1}, "requests=1"),
        ({"against": "vllm", "profile": True}, "as it comes"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        list(measure(Options(**{**SMALL, **options})))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_official_size_needs_a_gpu():
    with pytest.raises(DriverUnavailable, match="NVIDIA"):
        list(measure(Options()))


def test_flash_attention_is_listed_by_the_names_of_its_distributions(monkeypatch):
    """transformers knows FlashAttention-3 by its distribution's name, whichever build it is."""
    monkeypatch.setattr(
        engines, "packages_distributions", lambda: {"flash_attn_interface": ["numpy"]}
    )
    assert engines.versions()["numpy"] == __import__("numpy").__version__
    assert "kernels" not in engines.versions()


def test_models_and_prompts_are_seeded():
    one, two = (random_model.make_model("tiny", "cpu", seed=5) for _ in range(2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.dtype == torch.float32
    assert random_model.make_prompts("tiny", 2, 9) == random_model.make_prompts("tiny", 2, 9)
    assert random_model.SHAPES["llama-3-8b"].dtype == "bfloat16"
