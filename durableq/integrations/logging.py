"""Log records that survive the crash which they tell of: a handler that puts them into a queue, for `durableq forward` to ship.

    logging.getLogger().addHandler(DurableHandler("app-log.dq"))        # in the program
    $ durableq forward app-log.dq kafka://broker:9092/logs --key logger    # beside it

A record is in the file when the logging call returns: no thread of the program has to live on for it, and nothing but
a power cut in the next second loses it. Each record becomes one JSON object:

    time        seconds since 1970        level       "INFO"          logger      its name
    message     as formatted              host, pid, process, thread  where it comes from
    file, line, function                  where in the code           exception   the traceback, if there is one
    ...         what was given as `extra`, as text where JSON has no such thing; as extra_NAME if the name is one of the above

The file is bounded, lest an outage of what ships it fill the disk: from `max_bytes` on the oldest records make room, and
`durableq stat` says how many did.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from typing import Any

from durableq._queue import DurableQueue

__all__ = ["DurableHandler"]

_BOUND = 1 << 30
_ITS_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""What every record has; what else there is was given as `extra`."""
_text_of = logging.Formatter()


class DurableHandler(logging.Handler):
    """Puts each record into the queue at `path`, as a JSON object; see the module.

    options     of DurableQueue; a new file is bounded to 1 GiB with the oldest records dropped, unless they say otherwise

    What goes wrong (a full disk, say) is told as by every handler: on stderr, and the program goes on. Handlers in many
    processes may share the file.
    """

    def __init__(self, path: str | os.PathLike[str], level: int | str = logging.NOTSET, **options: Any) -> None:
        # A queue that is there has its own bound; an empty file is none yet, but becomes a new one.
        own = "max_bytes" in options or (os.path.exists(path) and os.path.getsize(path) > 0)
        bound = {} if own else {"max_bytes": _BOUND, "on_full": "drop_oldest"}
        self._queue = DurableQueue(path, **{"serializer": "json", **bound, **options})
        super().__init__(level)  # only now: the module closes at exit whatever handler it knows
        self._host = socket.gethostname()
        self._busy = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record into the queue; when this returns it survives the process."""
        late: list[logging.LogRecord] | None = getattr(self._busy, "late", None)
        if late is not None:
            # The put of this very thread was interrupted by a signal handler that logs, or it logs something itself.
            late.append(record)
            return
        self._busy.late = late = [record]
        try:
            while late:
                self._queue.put(self._fields(late.pop(0)), block=False)
        except Exception:
            self.handleError(record)
        finally:
            self._busy.late = None

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "host": self._host,
            "pid": record.process,
            "process": record.processName,
            "thread": record.threadName,
            "file": record.pathname,
            "line": record.lineno,
            "function": record.funcName,
        }
        if record.exc_info:
            fields["exception"] = _text_of.formatException(record.exc_info)
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = record.stack_info
        for name, value in vars(record).items():
            if name not in _ITS_OWN:
                fields[f"extra_{name}" if name in fields else name] = _speakable(value)
        return fields

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._queue.close()
        super().close()


def _speakable(value: Any) -> Any:
    """The value if JSON has a word for it, else its text."""
    if value is None or isinstance(value, (str, int)):
        return value
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value
