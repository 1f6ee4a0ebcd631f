# SPDX-License-Identifier: Apache-2.0
"""The table of NVIDIA's ioctl layouts: against the facts it is made from, and against C.

The facts (one row per driver release) lie beside the repository where it is developed;
without them the layouts are computed here from the fields that each structure has.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from ctypes import c_int32, c_uint8, c_uint32, c_uint64
from pathlib import Path

import pytest

from pyvattn import _native

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT.parent / "shared" / "facts" / "nvidia_driver_abi.csv"
GENERATOR = ROOT / "scripts" / "generate_abi_table.py"

LAYOUTS = _native.driver_layouts()


def structure(*fields):
    """A C structure; a field is (name, type)."""
    return type("Structure", (ctypes.Structure,), {"_fields_": list(fields)})


def offsets(kind, prefix, **names):
    return {f"{prefix}_{ours}": getattr(kind, theirs).offset for ours, theirs in names.items()}


def expected_layout(branch: int, wide_map: bool, max_gpus: int) -> dict[str, int]:
    """What a C compiler makes of the structures, by the fields that each branch has."""
    newer = branch >= 535
    alloc = [("root", c_uint32), ("parent", c_uint32), ("object", c_uint32), ("class_", c_uint32)]
    size = [("size", c_uint32)] if newer else []
    nvos21 = structure(*alloc, ("parameters", c_uint64), *size, ("status", c_uint32))
    flags = [("flags", c_uint32)] if newer else []
    nvos64 = structure(
        *alloc, ("parameters", c_uint64), ("rights", c_uint64), *size, *flags, ("status", c_uint32)
    )
    words = ["owner", "type", "flags", "width", "height", "pitch", "attr", "attr2", "format"]
    words += ["comprCovg", "zcullCovg"]
    longs = ["rangeLo", "rangeHi", "size", "alignment", "offset", "limit", "address"]
    tail = ["ctagOffset", "hVASpace", "internalflags", "tag"]
    tail += ["numaNode"] if branch >= 545 else []
    memory = structure(
        *[(word, c_uint32) for word in words],
        *[(long, c_uint64) for long in longs],
        *[(word, c_uint32) for word in tail],
    )
    uuid = c_uint8 * 16
    attributes = structure(("uuid", uuid), *[(f"field{i}", c_uint32) for i in range(5)])
    mapping = structure(
        ("base", c_uint64),
        ("length", c_uint64),
        ("offset", c_uint64),
        ("per_gpu", attributes * (256 if wide_map else 32)),
        ("gpu_count", c_uint64),
        ("rm_control_fd", c_int32),
        ("client", c_uint32),
        ("memory", c_uint32),
        ("status", c_uint32),
    )
    unmapping = structure(
        ("base", c_uint64), ("length", c_uint64), ("uuid", uuid), ("status", c_uint32)
    )
    external = structure(("base", c_uint64), ("length", c_uint64), ("status", c_uint32))
    device = structure(
        *[(f"word{i}", c_uint32) for i in range(5)],
        *[(f"long{i}", c_uint64) for i in range(3)],
        ("mode", c_uint32),
    )
    control = structure(
        *[(f"word{i}", c_uint32) for i in range(4)], ("parameters", c_uint64), ("size", c_uint64)
    )
    return {
        "rm_alloc_status": nvos21.status.offset,
        "rm_alloc_bytes": ctypes.sizeof(nvos21),
        "rm_alloc_access_bytes": ctypes.sizeof(nvos64),
        "rm_free_bytes": 4 * 4,
        "rm_control_bytes": ctypes.sizeof(control),
        "memory_bytes": ctypes.sizeof(memory),
        **offsets(
            memory,
            "memory",
            attr="attr",
            attr2="attr2",
            size="size",
            alignment="alignment",
            limit="limit",
        ),
        "device_bytes": ctypes.sizeof(device),
        "subdevice_bytes": 4,
        "gpu_attributes_bytes": ctypes.sizeof(attributes),
        "max_gpus": max_gpus,
        "map_bytes": ctypes.sizeof(mapping),
        **{f"map_{name}": getattr(mapping, name).offset for name in ("per_gpu", "gpu_count")},
        **{f"map_{name}": getattr(mapping, name).offset for name in ("rm_control_fd", "client")},
        **{f"map_{name}": getattr(mapping, name).offset for name in ("memory", "status")},
        "map_number": 33,
        "unmap_number": 66,
        "range_number": 73,
        "free_number": 34,
        "unmap_bytes": ctypes.sizeof(unmapping),
        "unmap_uuid": unmapping.uuid.offset,
        "unmap_status": unmapping.status.offset,
        "range_bytes": ctypes.sizeof(external),
    }


# By the oldest release of each; 550.40.07 still had the map parameters of 545.
EXPECTED = {
    "515.43.04": expected_layout(515, wide_map=False, max_gpus=32),
    "535.43.02": expected_layout(535, wide_map=False, max_gpus=32),
    "545.23.06": expected_layout(545, wide_map=False, max_gpus=32),
    "550.40.53": expected_layout(550, wide_map=True, max_gpus=32),
    "555.42.02": expected_layout(555, wide_map=True, max_gpus=256),
}


def releases_of(layouts):
    return [release for _, releases in layouts for release in releases]


def test_layouts_are_what_a_c_compiler_makes_of_the_structures():
    assert {releases[0]: layout for layout, releases in LAYOUTS} == EXPECTED


def test_every_release_is_listed_once_in_ascending_order():
    releases = releases_of(LAYOUTS)
    key = [tuple(int(part) for part in release.split(".")) for release in releases]
    assert key == sorted(set(key))
    assert "550.40.07" in LAYOUTS[2][1]


def test_unmap_parameters_are_the_same_in_every_release():
    """The patched driver relies on it: it knows its release by the query only."""
    fields = ("unmap_number", "unmap_bytes", "unmap_uuid", "unmap_status")
    assert len({tuple(layout[field] for field in fields) for layout, _ in LAYOUTS}) == 1


@pytest.mark.skipif(not FACTS.is_file(), reason="the facts about the driver are not here")
def test_the_table_is_generated_from_the_facts():
    command = [sys.executable, str(GENERATOR), str(FACTS), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not FACTS.is_file(), reason="the facts about the driver are not here")
def test_every_release_of_the_facts_is_in_the_table():
    facts = {line.split(",")[0] for line in FACTS.read_text().splitlines()[1:]}
    assert set(releases_of(LAYOUTS)) - facts == {"580.159.04"}
    assert facts <= set(releases_of(LAYOUTS))


def test_a_fact_that_changes_is_noticed(tmp_path):
    header = "tag,NVOS21,NVOS64,NVOS00,NVOS54,MEMALLOC,attr,attr2,size,alignment,limit,NV0080,"
    header += "NV2080,UvmAttr,UVM_MAX_GPUS,MAPEXT,perGpu,count,rmCtrlFd,hClient,hMemory,rmStatus,"
    header += "n_map,n_unmap,n_extrange,n_free,UNMAPEXT,uuid,st,EXTRANGE"
    row = "32,48,16,32,128,24,28,64,72,88,56,4,36,256,9264,24,9240,9248,9252,9256,9260,33,66,73,"
    row += "34,40,16,32,24"
    facts, table = tmp_path / "facts.csv", tmp_path / "table.inc"
    facts.write_text(f"{header}\n580.142,{row}\n")
    command = [sys.executable, str(GENERATOR), str(facts), "--output", str(table)]
    subprocess.run(command, check=True)
    assert subprocess.run([*command, "--check"]).returncode == 0
    facts.write_text(f"{header}\n580.142,{row.replace('9264', '9268')}\n")
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 1
