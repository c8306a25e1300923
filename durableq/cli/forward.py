"""`durableq forward`: see `durableq.integrations.forward`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from durableq.cli._command import DONE, INTERRUPTED, USAGE, Command, Failure, counted, existing_spool, positive, tell

URL_VARIABLE = "DURABLEQ_FORWARD_URL"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the spool file")
    parser.add_argument("url", metavar="URL", nargs="?", help=f"where to; default: ${URL_VARIABLE}, which `ps` does not show")
    parser.add_argument("--key", metavar="PART", help="what the engine partitions by")
    parser.add_argument("--topic", metavar="PART", help="where this item goes, instead of the place in the URL")
    parser.add_argument("--value", metavar="PART", help="what is sent (default: the item)")
    parser.add_argument(
        "--header", metavar="NAME[=FIELD]", action="append", help="a header with the value of a field; may be repeated"
    )
    parser.add_argument("--drain", action="store_true", help="end when the queue is empty")
    parser.add_argument("--batch", metavar="N", type=positive, default=500, help="most items sent together (default: 500)")
    parser.add_argument("--in-flight", metavar="N", type=positive, default=4, help="most batches under way (default: 4)")


def _run(options: argparse.Namespace) -> int:
    from durableq.integrations.forward import forward

    url = options.url or os.environ.get(URL_VARIABLE)
    if not url:
        raise Failure(f"say where to: durableq forward {options.path} URL, or put the URL into ${URL_VARIABLE}", USAGE)
    _tell_on_stderr()
    signals = _Signals()
    with signals:
        done = forward(
            existing_spool(options.path),
            url,
            key=_part(options.key),
            topic=_part(options.topic),
            value=_part(options.value),
            headers=dict(_header(text) for text in options.header) if options.header else None,
            drain=options.drain,
            stop=signals.stop,
            batch=options.batch,
            in_flight=options.in_flight,
        )
    refused = f", {done.refused} went to the dead letters" if done.refused else ""
    tell(f"{counted(done.sent, 'item')} forwarded{refused}")
    return INTERRUPTED if signals.seen == signal.SIGINT else DONE


class _Signals:
    """SIGINT and SIGTERM end the forwarder in order; the second one ends it at once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.seen: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as the background of a script wants it
                self._before[number] = signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.seen is not None:
            raise KeyboardInterrupt
        self.seen = number
        self.stop.set()


def _tell_on_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("durableq: %(message)s"))
    logger = logging.getLogger("durableq.forward")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _part(text: str | None) -> str | Callable[[Any], Any] | None:
    """A field's name, or MODULE:FUNCTION."""
    if text is None or ":" not in text:
        return text
    module, _, name = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = __import__(module, fromlist=[name])
        function: Callable[[Any], Any] = getattr(found, name)
    except (ImportError, AttributeError) as exc:
        raise Failure(f"{text}: there is no such function: {exc}", USAGE) from None
    except (Exception, SystemExit) as exc:  # anything can happen while a module is run
        raise Failure(f"{text}: {module} cannot be imported: {type(exc).__name__}: {exc}") from exc
    finally:
        sys.path.pop(0)
    return function


def _header(text: str) -> tuple[str, str]:
    name, _, field = text.partition("=")
    return name, field or name


COMMAND = Command(
    "forward",
    "send the items on to Kafka, Redis or an AMQP broker, and keep them while it is away",
    _arguments,
    _run,
    description=(
        "An item is done when the engine has confirmed it. While the engine is away the items stay in the queue, and it is\n"
        "tried again until it is back. What the engine refuses for good goes to the dead letters. SIGTERM and SIGINT end it\n"
        "in order.\n\n"
        "A PART is the name of a field of the item, or MODULE:FUNCTION, a function of the item.\n\n"
        "URL is one of\n"
        "  kafka://HOST:PORT,HOST:PORT/TOPIC?PROPERTY=VALUE        (properties of librdkafka)\n"
        "  redis://HOST:PORT/DB/STREAM    redis://HOST:PORT/DB?list=NAME    also rediss://, unix://\n"
        "  amqp://USER:PASSWORD@HOST/VHOST?queue=NAME    amqp://...?exchange=NAME&routing_key=KEY    also amqps://"
    ),
    examples=(
        ("durableq forward events.dq kafka://broker:9092/events --key user", "each user's events in their order"),
        ("durableq forward jobs.dq redis://localhost/0/jobs --drain", "to a Redis stream, until the queue is empty"),
    ),
)
