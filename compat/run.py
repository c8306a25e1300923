"""Runs one suite under one start method, in a process of its own, and writes one line of JSON for each event.

    python -m compat.run SUITE METHOD RESULTS        METHOD is fork, spawn, forkserver, or "-" where none matters

All that the tests make lies in the folder of RESULTS, which whoever runs this removes: a hang may end it at any moment.
A line says either that a test starts or how it ended; what started and has no end took the process with it, or hung.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import sys
import tempfile
import time
import unittest
from typing import IO, Any

from . import broken, standins

PATIENCE = 20.0 if os.environ.get(broken.HOW) else 120.0
"""Seconds after which a test hangs; a queue that is broken on purpose makes many hang."""


class Result(unittest.TestResult):
    """Writes down each outcome, with the number of our queues that the test built."""

    def __init__(self, file: IO[str]) -> None:
        super().__init__()
        self._file = file
        self._built = 0
        self._began = 0.0
        self._outcome: tuple[str, str] | None = None

    def _write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._write(start=identity(test))
        self._built = standins.built()
        self._began = time.monotonic()
        self._outcome = None
        # A hang ends the process, with all its stacks on the standard error: whoever reads the results sees who hung.
        faulthandler.dump_traceback_later(PATIENCE, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        outcome, detail = self._outcome or ("ok", "")
        self._write(
            test=identity(test),
            outcome=outcome,
            detail=detail,
            built=standins.built() - self._built,
            seconds=round(time.monotonic() - self._began, 2),
        )
        super().stopTest(test)

    def _set(self, outcome: str, detail: str) -> None:
        if self._outcome is None or self._outcome[0] != "failed":
            self._outcome = outcome, detail

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        text = self._exc_info_to_string(err, test)
        if isinstance(test, unittest.TestCase):
            self._set("failed", text)
        else:  # the setUp or tearDown of a class: there is no test that could say it
            self._write(test=str(test), outcome="failed", detail=text, built=0, seconds=0)

    addError = addFailure

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self._set("failed", f"{subtest}: {self._exc_info_to_string(err, test)}")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._set("skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._set("failed", "marked as an expected failure")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._set("ok", "")


def identity(test: unittest.TestCase) -> str:
    """The id of a test, without the prefix that says no more than where it lives."""
    module, _, rest = test.id().partition(".")
    if module == "compat" and rest.startswith("mp."):
        return "_test_multiprocessing." + rest[3:]
    return rest


def main(suite: str, method: str, results: str) -> int:
    folder = os.path.dirname(results)
    os.environ[standins.COUNT] = os.path.join(folder, "built")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    if suite in ("multiprocessing", "logging"):
        os.environ[standins.PATCH] = "1"
    if method != "-":
        multiprocessing.set_start_method(method, force=True)
        if method == "forkserver":
            multiprocessing.set_forkserver_preload(["compat.mp" if suite == "multiprocessing" else "compat.clients_mp"])
    from .cpython import tests

    with open(results, "w") as file:
        unittest.TestSuite(tests(suite)).run(Result(file))
    sys.stdout.flush()
    os._exit(0)  # threads that a failed test left behind must not keep this process


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
elif __name__ == "__mp_main__":
    standins.patch_in_child()
