"""Memory over time, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from pyvattn.errors import MissingDependency
from pyvattn.replay.result import Result


def plot(title: str, results: Sequence[Result], path: str | PathLike[str]) -> None:
    """Draw what live requests hold in each result, and what of it tokens use, to ``path``.

    Raises :class:`~pyvattn.errors.MissingDependency` without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            "plots need matplotlib: pip install 'pyvattn[plot]', or leave the plot out"
        ) from error
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, waste = figure.subplots(2, 1, height_ratios=(2, 1))
    for result in results:
        times = [sample.time for sample in result.samples]
        held = [sample.held / 2**30 for sample in result.samples]
        over_time.plot(times, held, label=result.label, linewidth=1)
    over_time.set(title=title, xlabel="simulated seconds", ylabel="GiB held by live requests")
    over_time.legend(fontsize="small", ncols=2)
    labels = [result.label for result in results]
    waste.bar(labels, [result.waste_bytes / 2**20 for result in results])
    waste.set(ylabel="MiB wasted for\neach live request", yscale="symlog")
    waste.tick_params(axis="x", rotation=30)
    figure.savefig(path, dpi=120)
