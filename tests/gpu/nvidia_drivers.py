# SPDX-License-Identifier: Apache-2.0
"""What the GPU tests of `stock-uvm` and `patched` share."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from pyvattn import CacheSpec, KVCache, _native
from pyvattn.errors import DriverUnavailable

SPEC = {"layers": 2, "kv_heads": 8, "head_dim": 128, "dtype": "bfloat16"}


def require(driver: str) -> None:
    """Skip with the driver's own reason where this machine cannot offer it."""
    try:
        _native.driver_capabilities(driver, 0)
    except DriverUnavailable as error:
        pytest.skip(str(error))


def open_cache(driver: str, page_size: str = "64K", memory: str = "1GiB", **options) -> KVCache:
    spec = CacheSpec(**{**SPEC, "max_slots": 4, "max_tokens": 8192, **options})
    return KVCache(
        spec, device="cuda", driver=driver, page_size=page_size, layout="layer", memory=memory
    )


def script(driver: str, body: str) -> str:
    """A program that opens a cache as ``open_cache()`` does and then runs ``body``."""
    return (
        "import warnings\nimport torch\n"
        "from pyvattn import CacheSpec, KVCache\nfrom pyvattn.errors import *\n"
        "warnings.simplefilter('ignore', PlanWarning)\n"
        "def open_cache():\n"
        f"    spec = CacheSpec(**{SPEC!r}, max_slots=4, max_tokens=8192)\n"
        f"    return KVCache(spec, device='cuda', driver={driver!r}, page_size='64K',\n"
        "                   layout='layer', memory='1GiB')\n" + textwrap.dedent(body)
    )


def run(driver: str, body: str) -> str:
    """Run a program of its own and return what it printed; it must exit cleanly."""
    done = subprocess.run(
        [sys.executable, "-c", script(driver, body)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_memory() -> int:
    """Bytes of the device that nobody holds, as another process sees them."""
    program = "import torch; print(torch.cuda.mem_get_info()[0])"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True).stdout)
