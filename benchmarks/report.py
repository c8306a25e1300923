"""What was measured, as text for a terminal and as Markdown for the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import Figures
from benchmarks.matrix import DURABILITY, Target
from benchmarks.peers import Peer
from benchmarks.works import Work

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
"""Between these lines of the README stands what `markdown` makes."""

COLUMNS = {
    "rate": ("messages/s", ",.0f"),
    "slowest": ("slowest", ".2f"),
    "median": ("median µs", ",.1f"),
    "p99": ("p99 µs", ",.1f"),
    "put": ("put", ".2f"),
    "get": ("get", ".2f"),
    "task_done": ("task_done", ".2f"),
    "resident": ("MB resident", ",.1f"),
    "waiting": ("waiting", ",.0f"),
    "memory": ("MiB in memory", ",.1f"),
    "disk": ("MiB on disk", ",.1f"),
    "left": ("MiB then left", ",.1f"),
    "cpu": ("CPU s/million", ",.2f"),
}
"""The figures that are shown: title and format."""


@dataclass
class Result:
    """What came of one piece of work: medians, and why there are none of the others."""

    work: Work
    figures: dict[type[Peer], Figures] = field(default_factory=dict)
    failed: dict[type[Peer], str] = field(default_factory=dict)
    missing: dict[type[Peer], str] = field(default_factory=dict)  #: the command that installs it

    def times_better(self, peer: type[Peer]) -> float | None:
        """How many times better durableq, the first subject, is than another."""
        ours = self.figures.get(self.work.subjects[0])
        if ours is None or peer not in self.figures or peer is self.work.subjects[0]:
            return None
        ratio = ours[self.work.key] / self.figures[peer][self.work.key]
        return ratio if self.work.more_is_better else 1 / ratio


def lines(result: Result) -> list[str]:
    """The table of one piece of work, for a terminal."""
    shown = [key for key in COLUMNS if any(key in figures for figures in result.figures.values())]
    heads = "".join(f"{COLUMNS[key][0]:>16}" for key in shown)
    table = [f"{result.work.name:<45}{heads}   durableq is"]
    for peer in result.work.subjects:
        if peer in result.figures:
            cells = "".join(f"{result.figures[peer][key]:>16{COLUMNS[key][1]}}" for key in shown)
            times = result.times_better(peer)
            better = "" if times is None else f"{times:8.2f} x"
            note = f"   {DURABILITY[peer]}" if peer in DURABILITY and result.work.group == "ack" else ""
            table.append(f"  {peer.name:<43}{cells}   {better:10}{note}".rstrip())
        elif peer in result.failed:
            table.append(f"  {peer.name:<43}FAILED: {result.failed[peer]}")
        elif peer in result.missing:
            table.append(f"  {peer.name:<43}missing; it comes with: {result.missing[peer]}")
    return table


@dataclass
class Verdict:
    """One target and what came of it; `reached` is None if it could not be told."""

    what: str
    wanted: str
    measured: str
    reached: bool | None

    @property
    def word(self) -> str:
        """For people."""
        return {True: "reached", False: "not reached", None: "not measured"}[self.reached]


def judge(targets: Iterable[Target], results: Mapping[Work, Result]) -> list[Verdict]:
    """What came of the targets of the work that was done."""
    verdicts = []
    for target in targets:
        if target.work not in results:
            continue
        best = target.ratio(results[target.work].figures)
        whom = target.theirs[0].name if len(target.theirs) == 1 else f"the best of {len(target.theirs)} peers"
        measured, reached = "", None
        if best:
            ratio, peer = best
            measured = f"{ratio:.2f}" + (f" ({peer.name})" if len(target.theirs) > 1 else "")
            reached = target.reached(ratio)
        wanted = f"at {'most' if target.at_most else 'least'} {target.bound:g} x {whom}"
        verdicts.append(Verdict(f"{target.work.name}: {target.what}", wanted, measured, reached))
    return verdicts


def summary(verdicts: Iterable[Verdict]) -> list[str]:
    """The targets, for a terminal."""
    return [f"  {v.what:<68} {v.wanted:<45} {v.measured:<34} {v.word}" for v in verdicts]


def markdown(heading: str, results: Iterable[Result], verdicts: Iterable[Verdict]) -> str:
    """Both tables for the README."""
    rows = [heading, "", "| work | wanted | measured | |", "|---|---|---|---|"]
    rows += [f"| {v.what} | {v.wanted} | {v.measured} | {v.word} |" for v in verdicts]
    rows += ["", "| work | durableq | how many times better that is |", "|---|---|---|"]
    for result in results:
        ours = result.figures.get(result.work.subjects[0])
        if ours is None:
            continue
        cells = ", ".join(f"{ours[key]:{form}} {title}" for key, (title, form) in COLUMNS.items() if key in ours)
        better = [(peer.name, result.times_better(peer)) for peer in result.work.subjects]
        others = "; ".join(f"{name} {times:.2f}" for name, times in better if times is not None)
        rows.append(f"| {result.work.name} | {cells} | {others} |")
    return "\n".join(rows) + "\n"


def write_into(readme: Path, text: str | None) -> None:
    """Replace what stands between the two marks. Raises ValueError if they are not there. None: only see whether they are."""
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme}: put the lines {BEGIN} and {END} where the tables belong")
    if text is not None:
        readme.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
