"""Memory over time and waste, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from statistics import fmean, median

from pyvattn.errors import MissingDependency
from pyvattn.replay.result import Result

_POINTS = 150


def plot(title: str, results: Sequence[Result], path: str | PathLike[str]) -> None:
    """Draw to ``path`` what live requests hold in each result, and the waste of each.

    Raises :class:`~pyvattn.errors.MissingDependency` without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            "plots need matplotlib: pip install 'pyvattn[plot]', or leave the plot out"
        ) from error
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, waste = figure.subplots(2, 1, height_ratios=(3, 2))
    for result in results:
        over_time.plot(*_smooth(result), label=result.label, linewidth=1.2)
    over_time.set(title=title, xlabel="simulated seconds", ylabel="GiB held by live requests")
    # What is far slower than the rest would leave the rest no room.
    over_time.set_xlim(0, 1.05 * median(result.seconds for result in results))
    over_time.set_ylim(0)
    over_time.legend(fontsize="small", ncols=2)
    bars = waste.barh(
        [result.label for result in results], [result.waste_tokens for result in results]
    )
    waste.bar_label(
        bars,
        [f"{r.waste_tokens:,.1f} tokens, {r.waste_bytes / 1e6:,.1f} MB" for r in results],
        padding=4,
        fontsize="small",
    )
    waste.set(xlabel="tokens wasted for each live request, mean", xscale="symlog")
    waste.margins(x=0.3)
    waste.invert_yaxis()
    figure.savefig(path, dpi=120)


def _smooth(result: Result) -> tuple[list[float], list[float]]:
    """Return times and GiB held, each a mean over neighbouring samples."""
    size = max(1, len(result.samples) // _POINTS)
    groups = [result.samples[i : i + size] for i in range(0, len(result.samples), size)]
    times = [fmean(sample.time for sample in group) for group in groups]
    return times, [fmean(sample.held for sample in group) / 2**30 for group in groups]
