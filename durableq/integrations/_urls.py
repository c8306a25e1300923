"""The URLs of engines, taken apart.

    redis://[user:password@]host[:port][/db][/NAME][?stream=NAME | ?list=NAME][&more]     also rediss:// and unix:///socket
    kafka://host[:port][,host[:port]...]/TOPIC[?librdkafka.property=value&...]
    amqp://[user:password@]host[:port][/vhost]?queue=NAME | ?exchange=NAME[&routing_key=KEY]   also amqps://

What follows a name that is ours goes to the client library as it is. A URL may hold a password, so none is ever put into a
message: `place` is what people are shown.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from durableq.errors import BadURLError

__all__ = ["Engine", "split", "split_redis"]


class Engine(NamedTuple):
    """An engine's URL with the words taken out that are durableq's own."""

    url: str
    """For the client library."""
    place: str
    """Scheme, host and path, for people."""
    words: dict[str, str]
    """Our words and their values."""


def split(url: str, words: set[str]) -> Engine:
    """Take `words` out of the query of a URL. Raises BadURLError."""
    parts, own, others = _apart(url, words)
    return Engine(_joined(parts, others), _place(parts), own)


def split_redis(url: str, words: set[str]) -> Engine:
    """As `split`, for Redis: a name at the end of the path, /NAME or /0/NAME, is the word `stream`."""
    parts, own, others = _apart(url, {*words, "stream", "list"})
    if parts.scheme != "unix":
        steps = [unquote(step) for step in parts.path.split("/") if step]
        db = steps.pop(0) if steps and steps[0].isdigit() else "0"
        if len(steps) > 1:
            raise BadURLError(f"{_place(parts)}: this path has too many parts; it is redis://host:port/db/NAME")
        if steps:
            own.setdefault("stream", steps[0])
        parts = parts._replace(path=f"/{db}")
    if ("stream" in own) == ("list" in own):
        raise BadURLError(f"{_place(parts)}: name a stream or a list: redis://host:port/db/STREAM, ?stream=NAME or ?list=NAME")
    return Engine(_joined(parts, others), _place(parts), own)


def _apart(url: str, words: set[str]) -> tuple[SplitResult, dict[str, str], list[tuple[str, str]]]:
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as exc:
        raise BadURLError(f"this URL cannot be read: {exc}") from None
    own = {name: value for name, value in query if name in words}
    return parts, own, [(name, value) for name, value in query if name not in words]


def _joined(parts: SplitResult, query: list[tuple[str, str]]) -> str:
    # Not urlunsplit: it makes unix:/path of unix:///path.
    return f"{parts.scheme}://{parts.netloc}{parts.path}{'?' if query else ''}{urlencode(query)}"


def _place(parts: SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{quote(unquote(parts.path))}"
