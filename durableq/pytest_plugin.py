"""A pytest plugin: one durable queue that all processes of a test run share, the workers of pytest-xdist included.

Loaded on request: `pytest -p durableq.pytest_plugin`, or in the top conftest.py

    pytest_plugins = ["durableq.pytest_plugin"]

Then a test that takes the fixture `durable_queue` gets a `DurableQueue` at the run's one path: what one test puts, another may
take, in whatever worker it runs. What a test has taken and not acked goes back when it ends, and also if its worker is killed
in the middle: whoever comes next finds it. A new run starts with an empty queue.

To give the queue options, override `durable_queue_options` in a conftest.py:

    @pytest.fixture(scope="session")
    def durable_queue_options():
        return {"max_deliveries": 3}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durableq._queue import DurableQueue

__all__ = ["durable_queue", "durable_queue_options", "durable_queue_path"]


@pytest.fixture(scope="session")
def durable_queue_options() -> dict[str, Any]:
    """What `durable_queue` is opened with, besides its path; to be overridden."""
    return {}


@pytest.fixture(scope="session")
def durable_queue_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the queue of this run lies: the same path in every worker of the run, and another one in every other run."""
    root = tmp_path_factory.getbasetemp()
    xdist: dict[str, str] | None = getattr(request.config, "workerinput", None)
    if xdist is None:
        return root / "durable_queue.dq"
    # Each worker has a folder of its own within that of the run. With --basetemp the latter is not emptied between runs.
    return root.parent / f"durable_queue-{xdist['testrunuid']}.dq"


@pytest.fixture
def durable_queue(durable_queue_path: Path, durable_queue_options: dict[str, Any]) -> Iterator[DurableQueue]:
    """The queue that all tests of this run share, in whatever process they run; see the module."""
    with DurableQueue(durable_queue_path, **durable_queue_options) as queue:
        yield queue
