"""Tests of CPython that cannot pass, each with its reason.

They are run all the same: one that passes after all has to leave this list, or the run fails.
"""

from __future__ import annotations

_FEEDER = "an item that cannot be pickled is refused by `put` in the caller; there is no feeder thread that could meet it later"
_MP = "_test_multiprocessing."

DEVIATIONS: dict[str, str] = {
    "test_queue.FailingQueueTest.test_failing_queue": (
        "overrides the private methods `_put` and `_get`, between which and the caller there is a file here"
    ),
    "test_queue.SimpleQueueTest.test_references": (
        "its items are of a class that is local to the test and cannot be pickled; the queue keeps no reference to an item"
    ),
    _MP + "WithProcessesTestQueue.test_queue_feeder_donot_stop_onexc": _FEEDER,
    _MP + "WithProcessesTestQueue.test_queue_feeder_on_queue_feeder_error": f"overrides a private hook: {_FEEDER}",
}
