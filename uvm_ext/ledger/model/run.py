# SPDX-License-Identifier: Apache-2.0
"""Check the ledger's protocol with spin: `make model-check`.

The protocol as it is must hold, and every variant that is wrong on purpose must fail: a check
that finds nothing there would find nothing elsewhere. spin is taken from PATH or, on Debian and
Ubuntu, its package is fetched and unpacked into build/spin without being installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = Path(__file__).with_name("ledger.pml")
BUILD = Path(__file__).resolve().parents[3] / "build" / "spin"

# Name, what spin is given, what the checker is compiled with, what it is run with.
SAFETY = (("-DSAFETY",), ())
LIVENESS = (("-DNFAIR=4",), ("-a", "-f"))
RIGHT = (
    ("memory is never over the budget", ("-DKILLS=1",), *SAFETY),
    ("a member below its guarantee gets a chunk", ("-DKILLS=0", "-DPROGRESS"), *LIVENESS),
    ("no word stays with the dead", ("-DKILLS=1", "-DLOST"), *LIVENESS),
)
THOROUGH = (("memory is never over the budget, two deaths", ("-DKILLS=2",), *SAFETY),)
WRONG = (
    ("wrong: NO_SWEEP", ("-DKILLS=1", "-DLOST", "-DNO_SWEEP"), *LIVENESS),
    *(
        (f"wrong: {name}", (f"-D{name}", "-DKILLS=2"), *SAFETY)
        for name in (
            "NO_GENERATION",
            "NO_CAS",
            "GIVE_MAPPED",
            "NO_COOLING",
            "SAME_COOLING",
            "PROBE_FREE_ONLY",
            "LATE_LOOK",
        )
    ),
)


def find_spin() -> str | None:
    """Return spin's path, or None where there is none and none can be fetched."""
    if found := shutil.which("spin"):
        return found
    unpacked = BUILD / "usr" / "bin" / "spin"
    if unpacked.exists():
        return str(unpacked)
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    BUILD.mkdir(parents=True, exist_ok=True)
    quiet = {"cwd": BUILD, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    download = ["apt-get", "download", "spin"]
    if subprocess.run(download, check=False, **quiet).returncode != 0 and os.geteuid() == 0:
        # Images of containers come without lists of packages.
        subprocess.run(["apt-get", "update"], check=False, **quiet)
        subprocess.run(download, check=False, **quiet)
    for package in BUILD.glob("spin_*.deb"):
        subprocess.run(["dpkg", "-x", package.name, "."], check=False, **quiet)
    return str(unpacked) if unpacked.exists() else None


def errors(
    spin: str, model: tuple[str, ...], compiled: tuple[str, ...], run: tuple[str, ...]
) -> int:
    """Return how many errors spin finds, stopping at the first."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([spin, "-a", *model, MODEL], cwd=folder, check=True, capture_output=True)
        compiler = [os.environ.get("CC", "gcc"), "-O2", "-w", "-DCOLLAPSE", "-DMEMLIM=3000"]
        subprocess.run([*compiler, *compiled, "-o", "pan", "pan.c"], cwd=folder, check=True)
        done = subprocess.run(
            ["./pan", "-m1000000", *run], cwd=folder, check=False, capture_output=True, text=True
        )
    lines = done.stdout.splitlines()
    found = [line for line in lines if "errors:" in line]
    incomplete = [line for line in lines if "max search depth too small" in line]
    if not found or incomplete or "out of memory" in done.stdout:
        sys.exit(f"spin did not finish:\n{done.stdout}{done.stderr}")
    return int(found[0].rpartition(":")[2])


def main() -> None:
    """Run every check; exit with 1 if any does not end as it must."""
    spin = find_spin()
    if spin is None:
        sys.exit(
            "model-check: no spin in PATH, and its Debian package could not be fetched: install "
            "it (`apt-get install spin`) and try again"
        )
    failed = []
    thorough = "--thorough" in sys.argv
    for name, *check in (*RIGHT, *(THOROUGH if thorough else ()), *WRONG):
        found = errors(spin, *check)
        as_expected = (found > 0) == name.startswith("wrong")
        print(f"{'ok' if as_expected else 'FAILED':6} {name}: {found} errors", flush=True)
        if not as_expected:
            failed.append(name)
    if failed:
        sys.exit(f"model-check: not as expected: {', '.join(failed)}")


if __name__ == "__main__":
    main()
