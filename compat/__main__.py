"""The command line: `python -m compat`, `--all`, `--self-test`; see the package."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from durableq._compiled import COMPILED

from . import broken, report
from .cpython import SUITES, NoTestPackage, require
from .pythons import ROOT, environment, find
from .report import Row

VERSION = ".".join(map(str, sys.version_info[:3])) + ("" if COMPILED else " pure")
"""The version of this Python; "pure" if durableq's hot path is not compiled."""
LIMIT = 1200.0


def run(suite: str, method: str) -> Iterator[Row]:
    """One suite in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="durableq-compat-", ignore_cleanup_errors=True) as folder:
        results = Path(folder, "results")
        command = [sys.executable, "-m", "compat.run", suite, method, str(results)]
        said = Path(folder, "said")
        with said.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
            try:
                code = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                # Whatever it started goes with it: a test that hung has left its children behind, a manager its server.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        started, ended = None, 0
        for line in results.read_text().splitlines() if results.exists() else ():
            event = json.loads(line)
            started = event.get("start")
            if started is None:
                ended += 1
                yield Row(VERSION, suite, method, event["test"], event["outcome"], event["detail"], event["built"])
        text = said.read_text(errors="replace")
        if started is not None:
            yield Row(VERSION, suite, method, started, "hung", text)
        elif code != 0 or not ended:
            yield Row(VERSION, suite, method, f"{suite} as a whole", "failed", text or f"ended with {code}")


def run_all(suites: list[str], methods: list[str]) -> list[Row]:
    """All suites with this Python."""
    rows: list[Row] = []
    for suite in suites:
        for method in [method for method in SUITES[suite] if method in methods] or ["-"]:
            new = list(run(suite, method))
            bad = sum(not row.good for row in new)
            print(f"{VERSION:12} {suite:16} {method:11} {len(new):3} tests, {bad} not as they should be", flush=True)
            rows += new
    return rows


def self_test() -> tuple[bool, list[str]]:
    """Whether each broken queue is noticed, and by what: by tests that pass with a sound one."""
    lines, good = [], True
    sound: set[str] = set()
    for how in ("", *broken.WAYS):
        print(f"broken on purpose: {how}" if how else "sound, for comparison", flush=True)
        os.environ[broken.HOW] = how
        rows = run_all(["queue", "multiprocessing", "clients", "clients_mp"], ["fork"])
        del os.environ[broken.HOW]
        if not how:
            sound = {row.test for row in rows if row.verdict == "ok"}
            continue
        noticed = sorted(sound & {row.test for row in rows if row.verdict in ("failed", "hung")})
        lines.append(f"{how}: noticed by {len(noticed)} tests, among them {', '.join(f'`{one}`' for one in noticed[:3])}")
        good = good and bool(noticed)
    return good, lines


def every_python(pythons: dict[str, str], arguments: list[str]) -> list[Row]:
    """The same with each Python, on durableq as it is installed, and once more with the hot path that is not compiled."""
    rows: list[Row] = []
    for version, interpreter in pythons.items():
        with tempfile.TemporaryDirectory(prefix="durableq-compat-") as name:
            folder = Path(name)
            python = environment(interpreter, folder / "venv")
            # A copy of these tests and nothing else: beside the package itself they would import that, not what is installed.
            shutil.copytree(ROOT / "compat", folder / "compat")
            ways = ["", "1"] if interpreter == sys.executable else [""]
            for pure in ways:
                results = folder / "rows"
                command = [str(python), "-m", "compat", "--json", str(results), *arguments]
                subprocess.run(command, cwd=folder, env={**os.environ, "DURABLEQ_PURE": pure}, check=False)
                if results.exists():
                    rows += [Row(**row) for row in json.loads(results.read_text())]
                    results.unlink()
                else:
                    rows.append(Row(version, "all", "-", "the run as a whole", "failed", "it ended without results"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m compat", description=__doc__)
    parser.add_argument("--all", action="store_true", help="all Pythons found; writes the table into compat/README.md")
    parser.add_argument("--self-test", action="store_true", help="run on broken queues, which must be noticed")
    parser.add_argument("--suite", action="append", choices=list(SUITES))
    parser.add_argument("--method", action="append", choices=["fork", "spawn", "forkserver"])
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--json", help="write the results there")
    options = parser.parse_args()
    suites = options.suite or list(SUITES)
    methods = options.method or ["fork", "spawn", "forkserver"]
    try:
        require()
    except NoTestPackage as error:
        print(error, file=sys.stderr)
        return 2
    if options.self_test:
        good, lines = self_test()
        print("\n".join(lines))
        return 0 if good else 1
    noticed = True
    if options.all:
        pythons, missing = find()
        print("\n".join(missing))
        chosen = [part for suite in suites for part in ("--suite", suite)]
        rows = every_python(pythons, chosen + [part for method in methods for part in ("--method", method)])
        noticed, lines = self_test()
        if not options.suite and not options.method:
            report.write(rows, missing, lines)
    else:
        rows = run_all(suites, methods)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows]))
    if options.table:
        print(report.table(rows))
    complaints = report.complaints(rows)
    if complaints and not options.json:
        print(complaints)
    print(report.summary(rows))
    return 0 if rows and noticed and all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
