"""Which Pythons there are, and an environment for each."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
_QUESTION = "import sys, test.test_queue; print('%d.%d' % sys.version_info[:2])"


def find() -> tuple[dict[str, str], list[str]]:
    """Version -> an interpreter of that version with the `test` package; and a line on each version that has none."""
    found: dict[str, str] = {}
    missing = []
    for version in VERSIONS:
        places = [os.path.join(folder, "python" + version) for folder in os.environ.get("PATH", "").split(os.pathsep)]
        places += sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}*/bin/python{version}")))
        if sys.version_info[:2] == tuple(map(int, version.split("."))):
            places.insert(0, sys.executable)
        places = [place for place in places if os.access(place, os.X_OK)]
        for place in places:
            answer = subprocess.run([place, "-c", _QUESTION], capture_output=True, text=True)
            if answer.stdout.strip() == version:
                found[version] = place
                break
        else:
            reason = "not found"
            if places:
                reason = f"does not run, or has no `test` package (libpython{version}-testsuite on Debian and Ubuntu)"
            missing.append(f"Python {version}: {reason}")
    return found, missing


def environment(interpreter: str, folder: Path) -> Path:
    """A virtual environment with durableq as it is here, and what its clients need; returns its Python."""
    builder = [interpreter, "-m", "venv", str(folder)]
    subprocess.run(builder, check=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(ROOT), "pytest", "pytest-xdist"]
    subprocess.run([str(python), *install], check=True)
    return python
