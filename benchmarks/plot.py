"""What was measured, as bar charts: a PNG file for each of a few questions, small enough to lie beside the README.

Needs matplotlib: `pip install 'durableq[bench]'`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

try:
    import matplotlib
except ImportError:
    raise SystemExit("the charts need matplotlib; it comes with: pip install 'durableq[bench]'") from None

matplotlib.use("Agg")  # no display is needed, and none is looked for
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks import matrix
from benchmarks.report import COLUMNS, Result
from benchmarks.works import Work

CHARTS: dict[str, tuple[Work, ...]] = {
    "processes": (matrix.ONE, matrix.FOUR, matrix.ONE_DONE, matrix.FOUR_DONE, matrix.DRAIN, matrix.TRIP),
    "large": (matrix.ONE_KIB, matrix.FOUR_KIB, matrix.ONE_64, matrix.FOUR_64, matrix.ONE_MIB, matrix.FOUR_MIB),
    "durable": (matrix.ACK, matrix.ACK_ONE, matrix.PUT_ONE, matrix.PUT_EIGHT),
}
"""File name, and the work that it shows."""

_OURS, _OTHERS, _FLOORS = "#c2410c", "#64748b", "#cbd5e1"


def draw(results: Iterable[Result], directory: Path) -> list[Path]:
    """Write the charts whose work was done into a directory; their files."""
    done = {result.work: result for result in results if result.figures}
    files = []
    for name, works in CHARTS.items():
        shown = [done[work] for work in works if work in done]
        if not shown:
            continue
        rows = (len(shown) + 1) // 2
        most = max(len(result.figures) for result in shown)
        figure, axes = pyplot.subplots(rows, 2, figsize=(11, rows * (0.5 + 0.22 * most)), squeeze=False, layout="constrained")
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis, result in zip(axes.flat, shown, strict=False):
            _bars(axis, result, most)
        files.append(directory / f"{name}.png")
        figure.savefig(files[-1], dpi=80, pil_kwargs={"optimize": True})
        pyplot.close(figure)
    return files


def _bars(axis: Axes, result: Result, most: int) -> None:
    """One piece of work, in the upper part of a space for `most` bars, so that all bars of a chart are alike."""
    key = result.work.key
    title, form = COLUMNS[key]
    peers = [peer for peer in reversed(result.work.subjects) if peer in result.figures]
    values = [result.figures[peer][key] for peer in peers]
    colours = [
        _OURS if peer.name.startswith("durableq") else _FLOORS if peer.name.startswith("floor") else _OTHERS for peer in peers
    ]
    bars = axis.barh([peer.name for peer in peers], values, color=colours)
    axis.bar_label(bars, labels=[f"{value:{form}}" for value in values], padding=3, fontsize=8)
    less = "" if result.work.more_is_better else " (less is better)"
    axis.set_title(f"{result.work.name}: {title}{less}", fontsize=9, loc="left")
    axis.set_ylim(len(peers) - most - 0.5, len(peers) - 0.5)
    axis.tick_params(axis="y", labelsize=8, length=0)
    axis.xaxis.set_visible(False)
    axis.margins(x=0.18)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
