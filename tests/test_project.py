"""What the project says about itself agrees with itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import durableq

ROOT = Path(__file__).parent.parent


def test_the_ci_run_calls_the_readme_s_test_command():
    command = re.search(r'^readme_test_command="(.*)"$', (ROOT / ".ci/run").read_text(), re.MULTILINE).group(1)
    assert command in (ROOT / "README.md").read_text()


def test_the_package_names_the_version_of_its_project():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    assert durableq.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_package_is_marked_as_typed():
    assert (Path(durableq.__file__).parent / "py.typed").exists()


def test_importing_the_package_brings_nothing_heavy_along():
    # Workers are started often; psutil and filelock are for the cold paths.
    code = "import sys, durableq; print([m for m in ('psutil', 'filelock', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(durableq.__all__))
def test_everything_that_is_exported_is_there_and_documented(name):
    thing = getattr(durableq, name)
    assert not isinstance(thing, type) or thing.__doc__


@pytest.mark.parametrize(
    "name",
    [
        *("DurableQueue", "Queue", "JoinableQueue", "SimpleQueue", "Delivery", "Stats", "Owner", "Report"),
        *("Empty", "Full", "ShutDown", "check", "repair", "DurableQError", "NotASpoolError", "NewerFormatError"),
        *("DamagedError", "InsecureSpoolError", "NetworkFilesystemError", "OptionMismatchError", "SpoolReplacedError"),
        *("PoisonedError", "ClosedError", "StaleDeliveryError", "DecodeError"),
    ],
)
def test_every_promised_name_is_exported(name):
    assert name in durableq.__all__


def test_a_test_that_hangs_in_its_teardown_ends_the_run(tmp_path):
    hanging = tmp_path / "test_hanging.py"
    hanging.write_text(
        """
import threading
import pytest

@pytest.fixture
def closing():
    yield
    threading.Event().wait()

def test_that_hangs(closing):
    threading.Event().wait()
"""
    )
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "--timeout=0.5", "-p", "no:cacheprovider", str(hanging)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    )
    assert done.returncode == 1
    assert "in closing" in done.stderr, done.stderr
