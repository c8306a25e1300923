"""A program whose standard streams are closed: nothing of the package may take their place."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_importing_the_package_leaves_a_closed_standard_stream_closed(fd):
    code = f"import os, sys, durableq; sys.exit(os.path.lexists('/proc/self/fd/{fd}'))"
    command = f'exec "$0" -c "$1" {fd}{"<" if fd == 0 else ">"}&-'
    assert subprocess.run(["sh", "-c", command, sys.executable, code]).returncode == 0
