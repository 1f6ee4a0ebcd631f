# SPDX-License-Identifier: Apache-2.0
"""Every public call, given values that it is not made for: a result, or an error of ours.

What is called is read from the package, so a new name is tried as soon as it is public. Afterwards
what the call was made on still works, and everything that it opened can be closed.
"""

from __future__ import annotations

import inspect
from contextlib import closing, suppress

import pytest
from hostile import VALUES, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from names import public_callables
from world import GIVEN, PROMPT, SPEC, World

import pyvattn.demo
from pyvattn.attention import registry
from pyvattn.integrations.transformers import Engine, VAttentionCache
from pyvattn.replay import ContiguousAllocator

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")

# Some arguments are for others to check.
NOT_TRIED = {
    # Subclasses are what is called.
    "attention.Kernel.attend": "abstract",
    "attention.Kernel.attend_with_lse": "refuses everything: not every kernel has it",
    "attention.Kernel.unsupported": "answers None to everything",
    # A token's place is a wild pointer where no step backed it, as the docstring says.
    "attention.append": "tests/attention/test_bad_calls.py has what can be checked",
    # It opens a port and starts a thread.
    "metrics.serve_metrics": "tests/ledger/test_metrics.py tries what it refuses",
    # They want a second process.
    "transfers.send": "tests/core/test_transfers.py tries what it refuses",
    "transfers.receive": "tests/core/test_transfers.py tries what it refuses",
    # A good call serves a model for minutes.
    "demo.run": "test_the_demo_names_what_it_cannot_take, below",
}
TARGETS = [target for target in public_callables() if str(target) not in NOT_TRIED]
OPENED = (pyvattn.KVCache, pyvattn.BlockPool, Engine, VAttentionCache, ContiguousAllocator)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("public")
    (made / "calibration.json").write_text('{"source": "a test", "drivers": {}}')
    (made / "trace.csv").write_text("num_prefill_tokens,num_decode_tokens\n3,4\n")
    return made


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Some values are good names of files, which are then written."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _kernels_as_before():
    before = dict(registry._KERNELS)
    yield
    registry._KERNELS.clear()
    registry._KERNELS.update(before)


def arguments(world, target, hostile):
    """Good values for what a call needs, and ``hostile`` ones laid over them."""
    needed = {
        name: world.valid(str(target), name)
        for name, parameter in target.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in VARIADIC
        and name not in hostile
    }
    given = GIVEN[str(target)](world) if str(target) in GIVEN else {}
    return {**given, **needed, **hostile}


def call(world, target, hostile):
    """Make the call; returns the error of ours that it raised, if it did."""
    receiver = [] if target.owner is None else [world.receiver(target.owner, str(target))]
    try:
        result = target.function(*receiver, **arguments(world, target, hostile))
        if inspect.isgenerator(result):
            next(result, None)
        if isinstance(result, OPENED):
            result.close()
    except pyvattn.Error as error:
        return error
    except FileNotFoundError:
        # What it says that it leaves to the caller.
        if "FileNotFoundError" not in (target.function.__doc__ or ""):
            raise
    return None


# Benches measure for minutes: tests/test_bench*.py run them.
GOOD = [target for target in TARGETS if target.name.split(".")[-1] != "measure"]


@pytest.mark.parametrize("target", GOOD, ids=str)
def test_a_good_call_works(folder, target):
    """So that what is refused below is refused for the value that is wrong."""
    with closing(World(folder)) as world:
        error = call(world, target, {})
        unavailable = pyvattn.DriverUnavailable, pyvattn.MissingDependency
        if str(target).startswith(("cuda.", "metrics.")) and isinstance(error, unavailable):
            pytest.skip(f"not on this machine: {error}")
        assert error is None


# Any other error fails the test, and so does one that a terminal would act on.
@pytest.mark.parametrize("target", TARGETS, ids=str)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_gets_a_result_or_an_error_of_ours(folder, target, data):
    names = [name for name, it in target.parameters.items() if it.kind not in VARIADIC]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    with closing(World(folder)) as world:
        error = call(world, target, {name: data.draw(values) for name in chosen})
        assert error is None or (str(error).isprintable() and len(str(error)) < 500)
        still_works(world)


def still_works(world):
    """What the world has opened takes a request from beginning to end, with its books in order."""
    opened = vars(world)
    if (cache := opened.get("cache")) is not None and not cache.closed:
        for slot in cache.live_slots():
            cache.release(slot)
        cache.resize(4 << 20)
        cache.step({cache.acquire(3): 3})
        cache.drain()
        stats = cache.stats()
        assert stats.pages_free + stats.pages_mapped + stats.pages_quarantined == (
            stats.pages_allocated
        )
        assert (stats.slots_live, stats.bytes_used) == (1, 3 * SPEC.token_bytes)
    if (pool := opened.get("pool")) is not None and not pool.closed:
        pool.resize(4 << 20)
        pool.release(pool.allocate(1))
    if (engine := opened.get("engine")) is not None:
        request = engine.submit(PROMPT, 2)
        engine.run()
        assert len(request.output) == 2
        assert not world.model_cache.live_slots()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_options_of_a_request_are_checked_before_it_runs(folder, value):
    """Those of the library's generation config, which is not ours: a bad one stops nobody else."""
    with closing(World(folder)) as world:
        for name in ("temperature", "top_k", "repetition_penalty", "eos_token_id", "bad_words_ids"):
            with suppress(pyvattn.Error):
                world.engine.submit(PROMPT, 2, do_sample=True, **{name: value})
            world.engine.run()
        still_works(world)


@pytest.mark.parametrize("name", ["slots", "requests", "max_new_tokens", "out", "check", "texts"])
def test_the_demo_names_what_it_cannot_take(monkeypatch, name):
    pytest.importorskip("gguf", reason="the demo's packages")
    monkeypatch.setattr(pyvattn.demo, "require_dependencies", lambda: None)
    for value in (0, -1, 1.5, 2**64, 10**5000, [], "nul\0"):
        with pytest.raises(pyvattn.Error, match=name):
            pyvattn.demo.run(**{name: value})
