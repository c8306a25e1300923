"""Serializers: which one a handle writes with, what it reads, and one file that mixes them."""

from __future__ import annotations

import array
import contextlib
import copy
import json
import marshal
import pickle
import signal

import pytest

from durableq import DecodeError, DurableQueue


class Touches:
    """Unpickling one of these creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


class Upper:
    """A serializer of one's own."""

    def dumps(self, item):
        return item.upper().encode()

    def loads(self, data):
        return "<" + bytes(data).decode() + ">"


class Fails:
    def dumps(self, item):
        raise OverflowError("cannot dump this")

    def loads(self, data):
        raise OverflowError("cannot load this")


def test_pickle_is_the_default_and_keeps_types(q):
    item = {"set": {1, 2}, "tuple": (1,), "complex": 1j}
    q.put(item)
    assert q.get_nowait() == item


def test_json_carries_json(open_queue):
    q = open_queue(serializer="json")
    q.put({"name": "ä", "values": [1, 2.5, None, True]})
    assert q.get_nowait() == {"name": "ä", "values": [1, 2.5, None, True]}


def test_json_refuses_in_put_what_json_cannot_say(open_queue):
    q = open_queue(serializer="json")
    with pytest.raises(TypeError):
        q.put({1, 2})
    assert q.empty()


def test_bytes_are_carried_as_they_are(open_queue):
    q = open_queue(serializer="bytes")
    for item in (b"", b"\0\xff" * 1000):
        q.put(item)
    assert [q.get_nowait(), q.get_nowait()] == [b"", b"\0\xff" * 1000]


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_takes_anything_that_is_like_bytes(open_queue, kind):
    q = open_queue(serializer="bytes")
    q.put(kind(b"abc"))
    assert q.get_nowait() == b"abc"


def test_bytes_refuses_in_put_what_is_not_bytes(open_queue):
    q = open_queue(serializer="bytes")
    with pytest.raises(TypeError):
        q.put("text")
    assert q.empty()


def test_an_object_with_dumps_and_loads_is_a_serializer(open_queue):
    q = open_queue(serializer=Upper())
    q.put("word")
    assert q.get_nowait() == "<WORD>"


def test_a_local_class_is_a_serializer_for_its_own_handle(open_queue):
    class Json:
        def dumps(self, item):
            return json.dumps(item).encode()

        def loads(self, data):
            return json.loads(data)

    q = open_queue(serializer=Json())
    q.put({"a": [1]})
    assert q.get_nowait() == {"a": [1]}


def test_an_error_of_dumps_is_raised_by_put_and_nothing_is_put(open_queue):
    q = open_queue(serializer=Fails())
    with pytest.raises(OverflowError, match="cannot dump this"):
        q.put("x")
    assert q.empty()


def test_one_file_mixes_serializers_and_each_record_says_what_it_is(open_queue):
    open_queue(serializer="json").put({"from": "json"})
    open_queue(serializer="bytes").put(b"raw")
    reader = open_queue()
    reader.put({"set"})
    assert [reader.get_nowait() for _ in range(3)] == [{"from": "json"}, b"raw", {"set"}]


@pytest.mark.parametrize("serializer", ["json", "bytes"])
def test_a_handle_that_does_not_pickle_never_unpickles(open_queue, tmp_path, serializer):
    trace = tmp_path / "unpickled"
    open_queue().put(Touches(trace))
    safe = open_queue(serializer=serializer)
    with pytest.raises(DecodeError):
        safe.get_nowait()
    assert not trace.exists()


@pytest.mark.parametrize("serializer", ["json", "bytes"])
def test_a_handle_that_does_not_pickle_never_unpickles_by_peeking(open_queue, tmp_path, serializer):
    trace = tmp_path / "unpickled"
    open_queue().put(Touches(trace))
    safe = open_queue(serializer=serializer)
    with contextlib.suppress(DecodeError):
        safe.peek()
    assert not trace.exists()


def test_an_item_that_cannot_be_decoded_goes_to_the_dead_letters(open_queue):
    broken = open_queue(serializer=Fails())
    writer = open_queue(serializer=Upper())
    writer.put("bad")
    with pytest.raises(DecodeError):
        broken.get_nowait()
    stats = writer.stats()
    assert (stats.dead, stats.ready, stats.lent) == (1, 0, 0)
    assert writer.dead_letters.get_nowait() == "<BAD>"


def test_what_follows_an_item_that_cannot_be_decoded_is_delivered(open_queue):
    safe = open_queue(serializer="json")
    open_queue().put({"pickled"})
    safe.put("next")
    with pytest.raises(DecodeError):
        safe.get_nowait()
    assert safe.get_nowait() == "next"


def test_a_json_item_reaches_a_process_with_another_serializer(open_queue, start, path):
    open_queue(serializer="json").put(["a", 1])
    start("say(DurableQueue(path, serializer='bytes').get())", path).expect("['a', 1]")


@pytest.mark.parametrize("serializer", ["yaml", 5, object()])
def test_a_serializer_without_sense_raises(open_queue, serializer):
    with pytest.raises((ValueError, TypeError), match="serializer"):
        open_queue(serializer=serializer)


def test_a_queue_of_another_program_s_class_is_a_decode_error_where_the_class_is_missing(open_queue, start, path):
    start(
        """
        class Local:
            pass
        DurableQueue(path).put(Local())
        """,
        path,
    ).finish()
    q = open_queue()
    with pytest.raises(DecodeError):
        q.get_nowait()
    assert q.stats().dead == 1


class ShortOfMemory:
    """A serializer that finds no memory the first time."""

    dumps = staticmethod(str.encode)
    tries = 0

    def loads(self, data):
        self.tries += 1
        if self.tries <= 2:  # once more for its error
            raise MemoryError
        return bytes(data).decode()


def test_an_item_for_which_there_was_no_memory_goes_back_to_the_queue(open_queue):
    q = open_queue(serializer=ShortOfMemory())
    q.put("large")
    with pytest.raises(MemoryError):
        q.get_nowait()
    assert q.stats().dead == 0
    assert q.get_nowait() == "large"


class Doubles:
    """Its buffers have items of eight bytes."""

    dumps = staticmethod(lambda item: memoryview(array.array("d", item)))
    loads = staticmethod(lambda data: array.array("d", data).tolist())


@pytest.mark.parametrize("put", [lambda q, item: q.put(item), lambda q, item: q.put_many([item])])
def test_a_buffer_takes_its_bytes_whatever_its_items_are(path, open_queue, put):
    q, other = open_queue(serializer=Doubles), open_queue()
    put(q, [1.0, 2.0, 3.0])
    other.put("behind")
    assert q.get() == [1.0, 2.0, 3.0]
    assert other.get(timeout=0) == "behind"


def test_a_module_travels_as_a_serializer(path):
    with DurableQueue(path, serializer=marshal) as q, pickle.loads(pickle.dumps(q)) as there, copy.copy(q) as beside:
        there.put([1, 2])
        beside.put([3])
        assert [q.get(), q.get()] == [[1, 2], [3]]


def test_an_object_that_lives_with_its_process_is_refused_if_it_cannot_be_decoded_later(open_queue, start, path):
    """A connection is passed on by the process that put it. When that has ended there is none, and no other in its place."""
    putter = start(
        """
        import multiprocessing
        q = DurableQueue(path)
        ours, theirs = multiprocessing.Pipe()
        q.put(theirs)
        q.put("next")
        """,
        path,
    )
    putter.finish()
    q = open_queue()
    with pytest.raises(DecodeError):
        q.get(timeout=10)
    assert q.get(timeout=10) == "next"


@pytest.mark.parametrize("text", ["caf\udce9", {"caf\udce9": ["caf\udce9"]}])
def test_json_carries_texts_that_are_no_utf_8(open_queue, text):
    q = open_queue(serializer="json")
    q.put(text)
    assert q.get_nowait() == text


class Slow:
    """Decoding one of these is interrupted by a signal whose handler raises."""

    def __reduce__(self):
        return _interrupt, ()


def _interrupt():
    signal.raise_signal(signal.SIGUSR1)
    return "decoded"


def _once(number, frame):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    raise TimeoutError("time limit")


@pytest.fixture
def limited():
    """A time limit by a signal, as job runners have it; the signal comes once."""
    before = signal.signal(signal.SIGUSR1, _once)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("take", ["get", "get_many", "reserve", "reserve_many"])
def test_what_a_signal_handler_raises_while_an_item_is_decoded_is_raised_and_the_item_stays(q, limited, take):
    q.put(Slow())
    q.put("next")
    with pytest.raises(TimeoutError, match=r"^time limit$"):
        getattr(q, take)(*([2] if "many" in take else []))
    assert q.get_many(5) == ["decoded", "next"]
    assert q.dead_letters.qsize() == 0


def test_what_a_signal_handler_raises_under_a_lock_stays_what_it_is(q, limited, monkeypatch):
    def interrupted(*_):
        monkeypatch.undo()
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(q, "_fast_append", None)
    monkeypatch.setattr(q._store, "_write", interrupted)
    with pytest.raises(TimeoutError, match=r"^time limit$"):
        q.put("x")
    q.put("y")
    assert q.get_many(5) == ["y"]
