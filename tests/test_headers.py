"""Headers travel before the payload of a record, and cost nothing where there are none."""

from __future__ import annotations

import pytest

from durableq import DecodeError, _serializers
from durableq._record import TAG_HEADERS, TAG_JSON, encode_body


def put_raw(queue, payload, tag):
    """Put a record as another version, or nobody, would have written it."""
    queue._store.append((encode_body(payload, tag, 0, queue._store._salt),))


@pytest.mark.parametrize(("serializer", "item"), [("pickle", "x"), ("pickle", b"x"), ("json", "x"), ("bytes", b"x")])
def test_headers_arrive_with_the_item_for_whoever_reads_that_serializer(open_queue, serializer, item):
    q = open_queue(serializer=serializer)
    q._carry(lambda: {"traceparent": "00-ab-cd-01", "ä": "ö"})
    q.put(item)
    delivery = open_queue(serializer=serializer).reserve(False)
    assert delivery.item == item
    assert delivery.headers == {"traceparent": "00-ab-cd-01", "ä": "ö"}


def test_headers_are_asked_for_with_each_item(q):
    numbers = iter("123")
    q._carry(lambda: {"n": next(numbers)})
    q.put("a")
    q.put_many(["b", "c"])
    assert [d.headers["n"] for d in q.reserve_many(9)] == ["1", "2", "3"]


def test_an_item_without_headers_has_none(q):
    q.put("x")
    assert q.reserve(False).headers == {}


def test_get_and_peek_see_the_item_behind_its_headers(q):
    q._carry(lambda: {"a": "b"})
    q.put("x")
    assert q.peek() == ["x"]
    assert q.get_nowait() == "x"


def test_headers_are_there_again_when_the_item_is_delivered_again(q):
    q._carry(lambda: {"a": "b"})
    q.put("x")
    q.reserve(False).nack()
    assert q.reserve(False).headers == {"a": "b"}


def test_headers_do_not_make_a_handle_unpickle_that_was_not_opened_for_it(open_queue):
    q = open_queue()
    q._carry(lambda: {"a": "b"})
    q.put("x")
    with pytest.raises(DecodeError, match="'pickle'"):
        open_queue(serializer="json").get_nowait()
    assert q.dead_letters.get_nowait() == "x"


@pytest.mark.parametrize(
    "payload",
    [b"", b"\1", b"\xff\xff\xff\xff{}", b"\2\0\0\0[]1", b"\2\0\0\0{,1", b"\1\0\0\0\xff1"],
    ids=["nothing", "no length", "too long", "no object", "no json", "no text"],
)
def test_what_should_be_headers_and_is_not_is_a_dead_letter(open_queue, payload):
    q = open_queue(serializer="json")
    put_raw(q, payload, TAG_JSON | TAG_HEADERS)
    with pytest.raises(DecodeError, match="headers of the item"):
        q.reserve(False)
    assert q.stats().dead == 1


def test_a_reader_that_knows_no_headers_says_that_it_cannot_read_the_item_and_loses_nothing(open_queue, monkeypatch):
    q = open_queue(serializer="json")
    q._carry(lambda: {"a": "b"})
    q.put("x")
    with monkeypatch.context() as old_version:
        old_version.setattr(_serializers, "TAG_HEADERS", 0)
        with pytest.raises(DecodeError, match="does not read; it lies with the dead letters"):
            q.get_nowait()
    q.redrive()
    assert q.get_nowait() == "x"
