"""The pytest plugin, in test runs of their own: real pytest, real xdist workers, one of them killed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.timeout(240)  # a pytest run in a pytest run: seconds, but on a machine under load many


@pytest.fixture
def run(tmp_path):
    """`run(code, *arguments)` runs a module of tests with the plugin; its exit code and its output."""

    def runner(code, *arguments):
        (tmp_path / "test_it.py").write_text(textwrap.dedent(code))
        plugins = ["-p", "xdist", "-p", "durableq.pytest_plugin", "-p", "no:cacheprovider"]
        # What the outer run says to its own workers must not reach the inner one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they would take most of the time
        command = [sys.executable, "-m", "pytest", "-q", *plugins, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
        return done.returncode, done.stdout + done.stderr

    return runner


SHARED = """
    import os
    from pathlib import Path
    import pytest

    @pytest.mark.parametrize("n", range(6))
    def test_each_puts_one_and_the_last_finds_all(durable_queue, n):
        durable_queue.put((n, os.getpid()))
        if durable_queue.qsize() == 6:
            seen = durable_queue.peek(6)
            assert sorted(number for number, _ in seen) == list(range(6))
            Path("seen").write_text(str(len({pid for _, pid in seen})))
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_all_tests_of_a_run_share_one_queue_in_whatever_worker_they_run(run, tmp_path, processes):
    code, said = run(SHARED, "-n", str(processes))
    assert code == 0, said
    assert (tmp_path / "seen").read_text() == str(max(1, processes)), "so many processes have put"


def test_a_new_run_starts_with_an_empty_queue_even_in_the_same_folder(run, tmp_path):
    code = "def test_it(durable_queue):\n    assert durable_queue.empty()\n    durable_queue.put(1)\n"
    for _ in range(2):
        result, said = run(code, "-n", "1", "--basetemp", str(tmp_path / "base"))
        assert result == 0, said


def test_what_a_test_has_not_acked_goes_back_when_it_ends(run):
    code = """
    def test_first(durable_queue):
        durable_queue.put("x")
        durable_queue.get()

    def test_second(durable_queue):
        assert durable_queue.reserve(timeout=0).deliveries == 2
    """
    result, said = run(code)
    assert result == 0, said


def test_what_a_killed_worker_held_is_found_again_by_the_next(run, tmp_path):
    code = """
    import os, signal

    def test_first(durable_queue):
        durable_queue.put("precious")
        durable_queue.get()
        os.kill(os.getpid(), signal.SIGKILL)

    def test_second(durable_queue):
        delivery = durable_queue.reserve(timeout=30)
        assert (delivery.item, delivery.deliveries) == ("precious", 2)
        delivery.ack()
    """
    result, said = run(code, "-n", "1")
    assert result == 1
    assert "1 failed, 1 passed" in said and "worker 'gw0' crashed while running" in said


def test_a_conftest_gives_the_queue_its_options(run, tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import pytest\n@pytest.fixture(scope='session')\ndef durable_queue_options():\n    return {'max_deliveries': 3}\n"
    )
    result, said = run("def test_it(durable_queue):\n    assert durable_queue.max_deliveries == 3\n")
    assert result == 0, said
