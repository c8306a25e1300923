"""Items from a descriptor, as they come: in batches when there are many, at once when there are few.

There is no timer that collects a batch. Each batch is what one read gave, and a read gives what has come together since the
last one: the slower the queue, the larger the batches, and nothing that is complete ever waits.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

from durableq.cli._framing import Splitter
from durableq.cli._pipe import enlarge_pipe
from durableq.cli._signals import Signals

PAUSE = 0.04
"""Seconds that a block waits to be filled."""


def batches(fd: int, splitter: Splitter, signals: Signals) -> Iterator[list[bytes]]:
    """All items of a stream. Raises Stopped when a signal came and nothing more is there that was read; and ValueError."""
    enlarge_pipe(fd)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        in_time = None if splitter.patient or not splitter.held else PAUSE * 1000
        if not signals.poll(poll, in_time):
            yield splitter.rest()
            continue
        data = os.read(fd, splitter.wants)
        items = splitter.feed(data) if data else splitter.rest()
        if items:
            yield items
        if not data:
            return
