# SPDX-License-Identifier: Apache-2.0
"""Which driver ``auto`` takes, why, and what would be better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyvattn.arguments import check_name, check_type
from pyvattn.auto import VARIABLE, first_available, named_by_environment
from pyvattn.detect import cumem, host, patched, stock_uvm
from pyvattn.detect.report import DriverReport
from pyvattn.errors import ArgumentError, DriverUnavailable
from pyvattn.units import format_page_size


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
    """Return what ``auto`` takes on ``device``, which is "cpu" or "cuda…".

    ``reports`` are those of :func:`pyvattn.detect.detect_drivers`, one for every driver.
    """
    by_name = _by_name(reports)
    check_name("device", device, such_as="cuda")
    on_cuda = device != "cpu"
    named = by_name.get(named_by_environment() or "")
    if named is not None and (named.name != host.NAME) == on_cuda:
        return _named(named)

    def ask(name: str) -> None:
        if not by_name[name].available:
            raise DriverUnavailable(by_name[name].reason)

    try:
        taken = by_name[first_available(on_cuda, ask)]
    except DriverUnavailable as error:
        return AutoChoice(None, str(error), _instead(by_name, on_cuda))
    pages = f"pages of {', '.join(map(format_page_size, taken.page_sizes))}"
    if taken.name != cumem.NAME:
        return AutoChoice(taken.name, f"{taken.reason}; {pages}")
    reason = f"the default where the patched driver cannot be used; {pages}"
    return AutoChoice(taken.name, reason, _finer(by_name))


def _by_name(reports: Sequence[DriverReport]) -> dict[str, DriverReport]:
    check_type("reports", reports, Sequence)
    for report in reports:
        check_type("reports", report, DriverReport)
    by_name = {report.name: report for report in reports}
    if missing := {patched.NAME, stock_uvm.NAME, cumem.NAME, host.NAME} - set(by_name):
        raise ArgumentError(
            f"reports say nothing of {', '.join(sorted(missing))}: pass all of detect_drivers()"
        )
    return by_name


def _named(report: DriverReport) -> AutoChoice:
    if not report.available:
        return AutoChoice(None, f"{VARIABLE}={report.name}, and {report.reason}")
    pages = f"pages of {', '.join(map(format_page_size, report.page_sizes))}"
    return AutoChoice(report.name, f"{VARIABLE} names it; {pages}")


def _instead(by_name: dict[str, DriverReport], on_cuda: bool) -> str:
    if on_cuda and by_name[host.NAME].available:
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
