"""`forward` in a thread, for tests that watch it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from processes import PATIENCE

import durableq
from durableq.integrations.forward import Forwarded


class Forwarder:
    """Forwards the queue at a path until it is told to finish."""

    def __init__(self, queue: Path, sink: str, **options: Any) -> None:
        self.stop = threading.Event()
        self._done: Forwarded | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(queue, sink), kwargs={"stop": self.stop, **options})
        self._thread.start()

    def _run(self, queue: Path, sink: str, **options: Any) -> None:
        try:
            self._done = durableq.forward(queue, sink, **options)
        except BaseException as error:
            self._error = error

    def finish(self) -> Forwarded | None:
        """Stop it, and what it has done."""
        self.stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self._error:
            raise self._error
        return self._done
