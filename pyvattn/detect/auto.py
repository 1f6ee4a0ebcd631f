"""Which driver ``auto`` takes, why, and what would be better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyvattn.detect import cumem, host, patched, stock_uvm
from pyvattn.detect.report import DriverReport
from pyvattn.units import format_page_size

# On a CUDA device, best first: never stock-uvm, never host.
_ON_CUDA = (patched.NAME, cumem.NAME)


@dataclass(frozen=True)
class AutoChoice:
    """What ``auto`` means on one kind of device; ``driver`` is None where there is none.

    ``improvement`` says what would give finer pages or fewer calls, and how to get it;
    it is empty where nothing would.
    """

    driver: str | None
    reason: str
    improvement: str = ""


def choose_auto(reports: Sequence[DriverReport], device: str) -> AutoChoice:
    """Return what ``auto`` takes on ``device``, which is "cpu" or "cuda…"."""
    by_name = {report.name: report for report in reports}
    wanted = (host.NAME,) if device == "cpu" else _ON_CUDA
    taken = next((by_name[name] for name in wanted if by_name[name].available), None)
    if taken is None:
        return AutoChoice(None, by_name[wanted[-1]].reason, _instead(by_name, wanted))
    pages = f"pages of {', '.join(map(format_page_size, taken.page_sizes))}"
    if taken.name != cumem.NAME:
        return AutoChoice(taken.name, f"{taken.reason}; {pages}")
    reason = f"the default where the patched driver cannot be used; {pages}"
    return AutoChoice(taken.name, reason, _finer(by_name))


def _instead(by_name: dict[str, DriverReport], wanted: tuple[str, ...]) -> str:
    if wanted == _ON_CUDA and by_name[host.NAME].available:
        return "device='cpu' works without a GPU"
    return ""


def _finer(by_name: dict[str, DriverReport]) -> str:
    """Say how to get pages below cumem's 2M."""
    stock = by_name[stock_uvm.NAME]
    if not stock.available:
        return by_name[patched.NAME].advice
    finest = format_page_size(min(stock.page_sizes))
    return (
        f"driver='stock-uvm' or PYVATTN_DRIVER=stock-uvm gives pages from {finest} with the driver "
        "as it is (`pyvattn plan CONFIG` says what they gain); "
        f"{by_name[patched.NAME].advice or 'the patch gives them in fewer calls'}"
    )
