"""What all benchmark programs share: the line that says where figures come from, rounds that take turns, and medians.

Figures of different subjects are only compared if they come from one run in rounds A B C A B C: what else the machine does,
and how warm it is, then hits all of them alike, and the median leaves out the rounds that it hit hardest.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import psutil

Subject = TypeVar("Subject")
Figures = dict[str, float]
"""What one measurement found, by the name of the figure."""


def environment(directory: Path) -> str:
    """The machine, the Python and the file system that figures were taken on, in one line."""
    directory = directory.resolve()
    around = [part for part in psutil.disk_partitions(all=True) if directory.is_relative_to(part.mountpoint)]
    place = max(around, key=lambda part: len(part.mountpoint), default=None)
    disk = f"{place.fstype} on {place.device}" if place else "unknown file system"
    return f"{_processors()}, Linux {platform.release()}, Python {platform.python_version()}, {disk}"


def _processors() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} CPUs" + (f" ({models[0]})" if models else "")


class Failed(Exception):
    """A measurement without a result; the text says why."""


def take_turns(
    subjects: Iterable[Subject], rounds: int, measure: Callable[[Subject], Figures]
) -> tuple[dict[Subject, Figures], dict[Subject, str]]:
    """Measure each subject in each of the rounds: the median of each figure of each subject; and who Failed, and why.

    Whose measurement Failed once has no figures, and no turn any more.
    """
    found: dict[Subject, list[Figures]] = {subject: [] for subject in subjects}
    failed: dict[Subject, str] = {}
    for _ in range(rounds):
        for subject in list(found):
            try:
                found[subject].append(measure(subject))
            except Failed as failure:
                failed[subject] = str(failure)
                del found[subject]
    return {subject: medians(figures) for subject, figures in found.items()}, failed


def medians(rounds: list[Figures]) -> Figures:
    """Figure by figure, the median of the rounds."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def percentile(values: list[float], share: float) -> float:
    """The value that a `share` (0 to 1) of the values do not exceed: one that was measured, nothing between two."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * share)) - 1]
