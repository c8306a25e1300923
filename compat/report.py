"""From results to a verdict and a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .deviations import DEVIATIONS

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- made by python -m compat --all: begin -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """One test, run once."""

    version: str
    suite: str
    method: str
    test: str
    outcome: str
    """ok, failed, skipped, or hung"""
    detail: str = ""
    built: int = 0

    @property
    def deviation(self) -> str | None:
        return DEVIATIONS.get(self.test)

    @property
    def verdict(self) -> str:
        """What the table says of it."""
        if self.deviation and self.outcome in ("ok", "failed"):
            return "passes, but is a deviation" if self.outcome == "ok" else "deviation"
        if self.outcome == "ok" and not self.built:
            return "built no queue"
        return self.outcome

    @property
    def good(self) -> bool:
        return self.verdict in ("ok", "skipped", "deviation")


def summary(rows: Iterable[Row]) -> str:
    """One line of counts."""
    rows = list(rows)
    verdicts = [row.verdict for row in rows]
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    applicable = sum(verdict not in ("skipped", "deviation") for verdict in verdicts)
    passed = verdicts.count("ok")
    share = 100 * passed / applicable if applicable else 0
    return f"{counted}; {passed} of {applicable} applicable tests pass ({share:.1f} %)"


def complaints(rows: Iterable[Row]) -> str:
    """All that is not as it should be, for the terminal."""
    return "\n".join(
        f"{row.verdict.upper()} {row.test} (Python {row.version}, {row.method})\n{_indented(row.detail)}"
        for row in rows
        if not row.good
    )


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.strip().splitlines()[-25:])


def _cell(rows: list[Row]) -> str:
    if not rows:
        return "-"
    verdicts = {row.verdict for row in rows}
    if len(verdicts) == 1:
        verdict = verdicts.pop()
        return f"{verdict} ({', '.join(row.method for row in rows)})" if rows[0].method != "-" else verdict
    return ", ".join(f"{row.method} {row.verdict}" for row in rows)


def table(rows: list[Row]) -> str:
    """Test by version; the start methods stand in the cells."""
    versions = sorted({row.version for row in rows}, key=lambda name: ([int(part) for part in re.findall(r"\d+", name)], name))
    lines = ["| test | " + " | ".join(versions) + " |", "|---" * (len(versions) + 1) + "|"]
    by_place: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_place.setdefault((row.test, row.version), []).append(row)
    for test in dict.fromkeys(row.test for row in sorted(rows, key=lambda row: (row.suite, row.test))):
        cells = (_cell(by_place.get((test, version), [])) for version in versions)
        lines.append(f"| `{test}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def skips(rows: list[Row]) -> str:
    """Each skipped test with the versions and the reason that it gave."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.outcome == "skipped":
            found.setdefault((row.test, row.detail), {})[row.version] = None
    return "\n".join(f"- `{test}` ({', '.join(where)}): {reason}" for (test, reason), where in sorted(found.items()))


def write(rows: list[Row], missing: list[str], self_test: list[str]) -> None:
    """Put the results into compat/README.md, between its two marks."""
    deviations = "\n".join(f"- `{test}`: {reason}" for test, reason in sorted(DEVIATIONS.items())) or "None."
    made = "\n\n".join(
        [
            BEGIN,
            "\n".join([f"{summary(rows)}.", *(f"{line}." for line in missing)]),
            table(rows),
            f"## Deviations\n\n{deviations}",
            f"## Skipped, by the tests themselves\n\n{skips(rows) or 'None.'}",
            "## Broken on purpose\n\n" + "\n".join(f"- {line}" for line in self_test),
            END,
        ]
    )
    text = README.read_text()
    README.write_text(re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: made, text, flags=re.DOTALL))
