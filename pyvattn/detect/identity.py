"""Which CPU, GPU and driver release this machine has, from text files alone."""

from __future__ import annotations

import re
from pathlib import Path

from pyvattn.detect.machine import read_machine
from pyvattn.machine import cpu_model
from pyvattn.planner.calibration import MadeOn

_MODEL = re.compile(r"^Model:\s*(.+?)\s*$", re.MULTILINE)


def identify(root: Path = Path("/")) -> MadeOn:
    """Return what a calibration depends on; ``gpu`` is None where GPUs of several models are."""
    return MadeOn(cpu=cpu_model(), gpu=_gpu_model(root), release=read_machine(root).release)


def _gpu_model(root: Path) -> str | None:
    models = set()
    for path in root.glob("proc/driver/nvidia/gpus/*/information"):
        try:
            models.update(_MODEL.findall(path.read_text(encoding="utf-8", errors="replace")))
        except OSError:
            return None
    return models.pop() if len(models) == 1 else None
