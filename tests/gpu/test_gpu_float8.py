# SPDX-License-Identifier: Apache-2.0
"""Float8 K and V with scales on a GPU: the fused append, each kernel, and both in a CUDA graph."""

# ruff: noqa: E402
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pyvattn import CacheSpec, KVCache
from pyvattn.attention import KVScales, append, attend, kernel_infos, scales_of, set_scales
from pyvattn.attention.fused import is_fused, queries_in_float8
from pyvattn.attention.problem import Problem
from pyvattn.attention.quantise import quantised, quantised_queries
from pyvattn.errors import UnsupportedError

KERNELS = [info.name for info in kernel_infos() if info.unavailable is None] or ["none"]
HEADS, DIM, LENGTHS = 2, 128, (1, 500, 223, 225, 1999)


@pytest.fixture(params=["layer", "token"])
def cache(request):
    spec = CacheSpec(2, HEADS, DIM, "float8_e4m3fn", 8, 2048, 224)
    with KVCache(
        spec, device="cuda", driver="cumem", layout=request.param, memory="2GiB"
    ) as opened:
        scales = [[torch.rand(HEADS, device="cuda") * 0.1 + 0.005 for _ in range(2)] for _ in "kv"]
        set_scales(opened, KVScales(*scales))
        yield opened


@pytest.fixture
def filled(cache):
    """Return the slots, of :data:`LENGTHS`, and the K and V that were appended to layer 1.

    Slots that nobody holds when the cache is closed are reported as dropped.
    """
    slots, kept = [], []
    for length in LENGTHS:
        slot = cache.admit(length)
        new = [torch.randn(length, HEADS, DIM, device="cuda", dtype=torch.bfloat16) for _ in "kv"]
        at = torch.arange(length, device="cuda")
        append(cache, 1, torch.full_like(at, slot.index), at, *new)
        slots.append(slot)
        kept.append(new)
    yield slots, kept
    for slot in slots:
        cache.release(slot)


def test_the_fused_append_stores_the_bytes_that_torchs_operations_do(cache, filled):
    places = torch.zeros(1, dtype=torch.int64, device="cuda")
    if not is_fused(places, places, filled[1][0][0], cache.layer(1)[0]):
        pytest.skip("Triton does not convert to float8 on this GPU")
    slots, kept = filled
    for stored, which in zip(cache.layer(1), range(2), strict=True):
        for slot, new in zip(slots, kept, strict=True):
            wanted = quantised(new[which], scales_of(cache).of(1)[which], stored.dtype)
            found = stored[slot.index, : len(wanted)]
            assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("counts", [None, [3, 0, 1, 700, 5]])
@pytest.mark.parametrize("queries", [1, 5, 300])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_queries_become_the_bytes_that_torchs_operations_make(cache, counts, queries, group):
    k, v = cache.layer(1)
    lead = (len(LENGTHS), queries) if counts is None else (sum(counts),)
    # Heads before tokens, as models have them.
    heads_first = (*lead[:-1], group * HEADS, lead[-1], DIM)
    q = torch.randn(heads_first, device="cuda", dtype=torch.bfloat16).transpose(-2, -3)
    q[..., 0, 5], q[..., -1, 7] = torch.inf, torch.nan
    scales = scales_of(cache).of(1)
    slots = list(range(len(LENGTHS)))
    problem = Problem(q, k, v, slots, LENGTHS, True, 1.0, query_counts=counts, scales=scales)
    found, scale = queries_in_float8(problem)
    wanted, wanted_scale = quantised_queries(problem)
    assert torch.equal(scale, wanted_scale)
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
@pytest.mark.parametrize("queries", [1, 5, 300])
def test_kernels_are_as_far_from_the_stored_values_as_their_rounding(
    cache, filled, kernel, queries
):
    """FlashAttention-3 and the reference round the queries, and the first of them the weights."""
    slots, _ = filled
    q = torch.randn(len(slots), queries, 8, DIM, device="cuda", dtype=torch.bfloat16)
    try:
        out = attend(q, cache, 1, slots, LENGTHS, kernel=kernel)
    except UnsupportedError as error:
        pytest.skip(str(error))
    if kernel.startswith("sdpa") or kernel == "flex":
        wanted, _ = expected(cache, slots, q)
        torch.testing.assert_close(out.double(), wanted, atol=0.03, rtol=0.03)
    else:
        wanted = attend(q, cache, 1, slots, LENGTHS, kernel="reference")
        _, spread = expected(cache, slots, q)
        # A weight of four bits is off by a sixteenth of itself; queries move the weights a little.
        assert ((out - wanted).abs() <= spread / 12 + 0.02).all()


def expected(cache, slots, q):
    """Return causal attention to what is stored, in float64, and the same to the sizes of V."""
    out, spread = (torch.zeros(q.shape, dtype=torch.float64, device=q.device) for _ in "ov")
    scales = scales_of(cache).of(1)
    for row, (slot, length) in enumerate(zip(slots, LENGTHS, strict=True)):
        k, v = (
            (stored[slot.index, :length].double() * scale.double()[:, None]).transpose(0, 1)
            for stored, scale in zip(cache.layer(1), scales, strict=True)
        )
        count = min(q.shape[1], length)
        queries = q[row, -count:].double().transpose(0, 1).unflatten(0, (HEADS, -1))
        scores = queries @ k[:, None].mT * DIM**-0.5
        unseen = torch.ones(count, length, dtype=torch.bool, device=q.device).triu(
            length - count + 1
        )
        weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        for tensor, values in ((out, v), (spread, v.abs())):
            tensor[row, -count:] = (weights @ values[:, None]).flatten(0, 1).transpose(0, 1)
    return out, spread


@pytest.mark.parametrize("kernel", ["flash-attn-3", "flash-attn-3-paged"])
def test_a_captured_step_appends_and_attends_in_float8(cache, filled, kernel):
    if kernel not in KERNELS:
        pytest.skip(f"{kernel} cannot be used here")
    slots, _ = filled
    rows = torch.tensor([slot.index for slot in slots], device="cuda")
    lengths = torch.tensor(LENGTHS, device="cuda", dtype=torch.int32)
    new = torch.randn(2, len(slots), 1, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(len(slots), 1, 8, DIM, device="cuda", dtype=torch.bfloat16)

    def step():
        append(cache, 1, rows[:, None], (lengths - 1).long()[:, None], *new)
        return attend(q, cache, 1, rows, lengths, kernel=kernel)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for _ in range(3):
        new.normal_()
        q.normal_()
        graph.replay()
        torch.cuda.synchronize()
        wanted = attend(q, cache, 1, slots, LENGTHS, kernel="reference")
        torch.testing.assert_close(out, wanted, atol=0.06, rtol=0.06)


@pytest.mark.skipif("flash-attn-3" not in KERNELS, reason="flash-attn-3 cannot be used here")
def test_an_engine_says_the_same_in_captured_steps_and_without():
    """Captured before the first prompt, which sets the scales that the graphs read."""
    transformers = pytest.importorskip("transformers")
    from pyvattn.integrations.transformers import Engine, spec_for

    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=512,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    outputs = []
    for graphs in (True, False):
        spec = spec_for(model, 4, 512, "float8_e4m3fn")
        with (
            KVCache(spec, device="cuda:0", driver="cumem", memory="1GiB") as cache,
            Engine(model, cache, graphs=graphs) as engine,
        ):
            engine.capture(3)
            requests = [engine.submit(list(range(2, 2 + n)), 20) for n in (40, 9, 90)]
            engine.run()
            outputs.append([request.output for request in requests])
    assert outputs[0] == outputs[1]
    assert len({token for output in outputs[0] for token in output}) > 5
