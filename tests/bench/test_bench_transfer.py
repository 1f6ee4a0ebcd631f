# SPDX-License-Identifier: Apache-2.0
"""``bench transfer``: what it counts and compares, on the host."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the bench copies with torch")

from pyvattn.bench import transfer
from pyvattn.errors import ConfigError

LAYERS = 3


def measures(layout, driver="host"):
    options = transfer.Options(driver=driver, layout=layout, tokens=64, layers=LAYERS, rounds=3)
    return {found.name.removeprefix("64 tokens: "): found for found in transfer.measure(options)}


@pytest.mark.parametrize(
    ("layout", "driver", "arenas"), [("layer", "host", 2 * LAYERS), ("token", "cumem-emulated", 1)]
)
def test_a_view_and_a_copy_for_each_arena(layout, driver, arenas):
    found = measures(layout, driver)
    assert (found["dense views"].value, found["copies of rows"].value) == (arenas, arenas)
    for kind in ("one copy", "rows", "blocks of 16 tokens"):
        assert found[kind].unit == "GB/s"
        assert found[kind].value > 0
    for kind in ("one copy", "blocks of 16 tokens"):
        ratio = found[f"rate of rows / {kind}"]
        # What memcpy takes on the host is nobody's target.
        assert (ratio.rounds, ratio.ok) == (3, None)


def test_half_a_block_and_a_gpu_to_itself_are_refused():
    with pytest.raises(ConfigError, match="multiple of 16"):
        list(transfer.measure(transfer.Options(driver="host", tokens=40)))
    with pytest.raises(ConfigError, match="to_device=0 is the device itself"):
        list(transfer.measure(transfer.Options(to_device=0)))
