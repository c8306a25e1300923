"""The harness that runs CPython's own tests: it says what is missing, and it notices a queue that is broken.

All of it is run by `python -m compat`; here is what would make its verdict worthless.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def has_the_test_package() -> bool:
    try:
        return importlib.util.find_spec("test.test_queue") is not None
    except ModuleNotFoundError:
        return False


needs_the_test_package = pytest.mark.skipif(
    not has_the_test_package(), reason="this Python came without CPython's `test` package; `python -m compat` tells more"
)


def compat(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compat", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=170)


@needs_the_test_package
@pytest.mark.timeout(180)  # it takes seconds; the harness itself ends what hangs
def test_a_sound_queue_passes_what_cpython_tests_of_its_own() -> None:
    run = compat("--suite", "queue")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "applicable tests pass (100.0 %)" in run.stdout


@needs_the_test_package
@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["task_done never raises", "loses one in 1,000"])
def test_a_queue_that_is_broken_on_purpose_is_noticed(how: str) -> None:
    run = compat("--suite", "queue", DURABLEQ_COMPAT_BROKEN=how)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "FAILED test_queue." in run.stdout


def test_a_missing_test_package_is_an_error_that_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "__init__.py").touch()
    run = compat(PYTHONPATH=str(tmp_path))
    assert run.returncode == 2
    assert "testsuite" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("outcome", "built", "test", "verdict", "good"),
    [
        ("ok", 1, "a.test", "ok", True),
        ("ok", 0, "a.test", "built no queue", False),
        ("failed", 1, "a.test", "failed", False),
        ("hung", 1, "a.test", "hung", False),
        ("skipped", 0, "a.test", "skipped", True),
        ("failed", 1, "a deviation", "deviation", True),
        ("ok", 1, "a deviation", "passes, but is a deviation", False),
        ("hung", 1, "a deviation", "hung", False),
    ],
)
def test_a_verdict_trusts_no_test_that_built_none_of_our_queues_and_no_deviation_that_passes(
    outcome: str, built: int, test: str, verdict: str, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from compat.deviations import DEVIATIONS
    from compat.report import Row

    monkeypatch.setitem(DEVIATIONS, "a deviation", "for this test")
    row = Row("3.13.0", "a suite", "fork", test, outcome, built=built)
    assert (row.verdict, row.good) == (verdict, good)
