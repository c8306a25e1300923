"""The compiled hot path: it does what its twin in Python does, and leaves to it what is not usual."""

from __future__ import annotations

import errno
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress

import pytest
from death.trial import drain
from processes import PATIENCE, until

import durableq
from durableq import DurableQueue
from durableq import _state as state
from durableq._compiled import COMPILED
from durableq._handle import Handle
from durableq._head import HeadEnd
from durableq._reclaim import BATCH
from durableq.errors import PoisonedError

pytestmark = pytest.mark.skipif(not COMPILED, reason="the compiled hot path was not built here, or is kept out")

LEFT, DID = 0, 1
LONG = 3600


def crc32(*args):
    from durableq import _fast

    return _fast.crc32(*args)


# -- sums ---------------------------------------------------------------------------------------------------------------


def test_sums_of_all_short_lengths_are_those_of_zlib():
    data = random.Random(1).randbytes(400)
    for length in range(301):
        for start in (0, 1, 0xFFFFFFFF, 0xDEADBEEF):
            assert crc32(data[:length], start) == zlib.crc32(data[:length], start), (length, start)


def test_sums_are_those_of_zlib_wherever_the_data_lies_in_memory():
    dice = random.Random(2)
    view = memoryview(dice.randbytes(5000))
    for offset in range(64):
        for length in (0, 7, 63, 64, 65, 127, 128, 129, 1000, 4096):
            start = dice.getrandbits(32)
            assert crc32(view[offset : offset + length], start) == zlib.crc32(view[offset : offset + length], start)


@pytest.mark.parametrize("length", [65_536, 1_000_003, 16 << 20])
def test_sums_of_large_data_are_those_of_zlib(length):
    data = random.Random(length).randbytes(length)
    assert crc32(data) == zlib.crc32(data)
    assert crc32(bytes(length)) == zlib.crc32(bytes(length))


# -- which one is at work -----------------------------------------------------------------------------------------------

SAY = "import durableq._compiled as c; print(c.COMPILED)"


def test_a_module_of_another_layout_is_not_used():
    code = "import sys, types; m = types.ModuleType('_fast'); m.LAYOUT, m.Ends = (1, 2), object\n"
    code += "sys.modules['durableq._fast'] = m\nimport durableq; durableq._fast = m\n" + SAY
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_an_environment_variable_keeps_it_out():
    for value, expected in (("1", "False\n"), ("", "True\n")):
        env = {**os.environ, "DURABLEQ_PURE": value}
        assert subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, env=env).stdout == expected


def test_the_usual_put_get_and_ack_are_compiled(q):
    store = q._store
    q.put("first of all")  # opens the eyes of both ends
    assert q.get() == "first of all"
    q.task_done()
    store._look_at = time.monotonic() + PATIENCE  # else they are left to Python on a busy machine, to look around
    assert store._fast_append(b"x", q._tag) != LEFT
    assert store._fast_append_many([b"y", b"z"], q._tag) != LEFT
    box = []
    assert store._fast_take(box, 2, False, 0, False) != LEFT
    assert [entry[5] for entry in box] == [b"x", b"y"]
    assert store._fast_ack(*box[0][:3]) != LEFT
    assert store._fast_take(box, 1, True, 0, False) != LEFT
    assert q.stats().unfinished == 1


def test_a_get_that_only_lends_tells_nobody_of_a_change_also_when_all_is_on_the_disk(open_queue, monkeypatch):
    q = open_queue(sync=0.01)
    q.put_many(range(200))
    q.get()
    until(lambda: not q._store._words[q._store._committer._dirty])  # its thread has synced
    told = []
    monkeypatch.setattr(q._store, "told", lambda *args: told.append(args))
    for _ in range(100):
        q.get()
    assert len(told) < 10  # it looks around now and then, and Python takes that one


def test_a_large_item_is_read_by_the_compiled_call(open_queue):
    q = open_queue(serializer="bytes")
    q.put(b"")
    q.get()
    q.task_done()
    q.put(b"x" * 300_000)
    q._store._look_at = time.monotonic() + PATIENCE  # else it is left to Python on a busy machine, to look around
    assert q._store._fast_take([], 1, True, 0, False) != LEFT


def test_get_many_takes_all_that_wait_however_many_reads_they_take(open_queue):
    q = open_queue(serializer="bytes", sync=None)
    q.put(b"")
    q.get()
    q.task_done()
    items = [n.to_bytes(4, "big") * 20 for n in range(30_000)]  # more than a milestone
    q.put_many(items)
    assert q.get_many(10**30) == items
    assert q.stats().lent == len(items)


# -- what it leaves -----------------------------------------------------------------------------------------------------


class Bytearrays:
    """A serializer that returns what is almost bytes."""

    dumps = staticmethod(bytearray)
    loads = staticmethod(bytes)


def set_word(word, value):
    def prepare(q):
        q._store._words[word] = value

    return prepare


def started(*items):
    def prepare(q):
        q.put_many(items)

    return prepare


def then(*steps):
    def prepare(q):
        for step in steps:
            step(q)

    return prepare


def damage(q):
    with open(q.path, "r+b") as file:
        file.seek(q._store._control.head()[0] - q._store._head_base + 50)
        file.write(b"\xff\xfe\xfd")


def overstay(q):
    """What this thread has got is due back, and nobody has looked yet."""
    q._store.extend(*q._this_thread.unacked.oldest(), 0.001)
    time.sleep(0.002)


def hold(n):
    """Lend n items with `get`."""

    def prepare(q):
        q.put_many([b"h"] * n)
        assert len(q.get_many(n)) == n

    return prepare


def other_grows_the_ledger(q):
    with DurableQueue(q.path, serializer="bytes") as other:
        other.put_many([b"o"] * 4200)
        other._store._look_at = float("inf")
        assert len(other.reserve_many(4200)) == 4200


def poison(q):
    q._store._bar(PoisonedError(errno.EIO, "sick", q.path))


def put(q):
    return q._store._fast_append(b"new", q._tag)


def put_batch(q):
    return q._store._fast_append_many([b"new", b"newer"], q._tag)


def take(q, done=False, limit=1):
    box = []
    did = q._store._fast_take(box, limit, done, 0, False)
    assert did or not box
    return did


def ack(q):
    oldest = q._this_thread.unacked.oldest() or (0, 0, 0)
    return q._store._fast_ack(*oldest)


PUTS = (lambda q: q.put(b"new", False), lambda q: q.put_many([b"new", b"newer"], False))
GETS = (lambda q: q.get(False), lambda q: q.get_many(2, False))
TASK_DONE = (lambda q: q.task_done(),)

REASONS = {
    "put: shut down": ({}, lambda q: q.shutdown(), put, PUTS),
    "put: full": ({"maxsize": 1}, started(b"a"), put, PUTS),
    "put: full of what was given back": ({"maxsize": 1}, lambda q: (q.put(b"a"), q.reserve().nack()), put, PUTS),
    "put: half a batch fits": ({"maxsize": 2}, started(b"a"), put_batch, PUTS),
    "put: closed": ({}, lambda q: q.close(), put, PUTS),
    "put: poisoned": ({}, poison, put, PUTS),
    "put: a bytearray": (
        {"serializer": Bytearrays},
        started(b"a"),
        lambda q: q._store._fast_append(bytearray(b"x"), 4) or q._store._fast_append_many([bytearray(b"x")], 4),
        PUTS,
    ),
    "put: nothing": ({}, started(), lambda q: q._store._fast_append_many([], 3), (lambda q: q.put_many([]),)),
    "put: a huge batch": (
        {},
        started(),
        lambda q: q._store._fast_append_many([bytes(9 << 20)], 3),
        (lambda q: q.put_many([bytes(9 << 20), b"small"]),),
    ),
    "put: time to look around": ({}, lambda q: setattr(q._store, "_look_at", 0.0), put, PUTS),
    "get: nothing there": ({}, started(), take, GETS),
    "get: shut down": ({}, then(started(b"a"), lambda q: q.shutdown()), take, GETS),
    "get: given back, and deliveries are bounded": (
        {"max_deliveries": 3},
        then(started(b"a", b"b"), lambda q: q.reserve().nack()),
        take,
        GETS,
    ),
    "get: given back with a delay": ({}, then(started(b"a", b"b"), lambda q: q.reserve().nack(LONG)), take, GETS),
    "get: delayed": ({}, lambda q: (q.put(b"d", delay=LONG), q.put(b"e")), take, GETS),
    "get: lent for a time": ({"lease": LONG}, started(b"a"), take, GETS),
    "get: damaged": ({}, then(started(b"a" * 9, b"b"), damage), take, GETS),
    "get: a dead letter is next": ({}, then(started(b"a"), lambda q: q.reserve().reject()), take, GETS),
    "get: a checkpoint is due": ({}, then(started(b"a", b"b"), set_word(state.H_LIMIT, 0)), take, GETS),
    "get: the ledger is full": ({}, then(hold(4096), started(b"a")), take, GETS),
    "get: the ledger moved": ({}, then(other_grows_the_ledger, started(b"a")), take, GETS),
    "get: huge": ({}, started(bytes(9 << 20), b"b"), take, GETS),
    "get: closed": ({}, then(started(b"a"), lambda q: q.close()), take, GETS),
    "get: poisoned": ({}, then(started(b"a"), poison), take, GETS),
    "get: none wanted": ({}, started(b"a"), lambda q: take(q, limit=0), GETS),
    "ack: nothing lent": ({}, started(b"a"), ack, TASK_DONE),
    "ack: space is due": ({}, then(hold(2), set_word(state.UNPUNCHED, BATCH - 8)), ack, TASK_DONE),
    "ack: a large ledger is empty": ({}, then(hold(20_000), lambda q: [q.task_done() for _ in range(19_999)]), ack, TASK_DONE),
    "ack: the ledger moved": ({}, then(hold(2), other_grows_the_ledger), ack, TASK_DONE),
    "ack: somebody else has it": (
        {},
        lambda q: (hold(1)(q), overstay(q), q._extra.append(DurableQueue(q.path)), q._extra[0].reserve(False)),
        ack,
        TASK_DONE,
    ),
    "ack: another thread did it": (
        {},
        then(hold(2), lambda q: q._store.ack(*q._this_thread.unacked.oldest())),
        ack,
        (lambda q: (q.task_done(), q.stats().lent),),
    ),
    "ack: closed": ({}, then(hold(1), lambda q: q.close()), ack, TASK_DONE),
    "ack: poisoned": ({}, then(hold(1), poison), ack, TASK_DONE),
}

# Not usual, and done by the compiled calls all the same.
SELDOM = {
    "put: a checkpoint is due": ({}, set_word(state.T_MARK, 0), put, PUTS),
    "get: space is due": ({}, then(started(b"a", b"b"), set_word(state.H_NEXT, 0)), take, GETS),
    "get: given back": ({}, then(started(b"a", b"b"), lambda q: q.reserve().nack()), take, GETS),
    "get: given back by one of several": (
        {},
        then(started(b"a", b"b", b"c", b"d"), lambda q: [d.nack() for d in q.reserve_many(3)[::2]]),
        take,
        GETS,
    ),
    "ack: something was given back": ({}, then(hold(2), started(b"c"), lambda q: q.reserve().nack()), ack, TASK_DONE),
    "ack: the ledger was laid out anew": (
        {},
        then(hold(100), lambda q: [q.task_done() for _ in range(50)], hold(4050)),
        ack,
        TASK_DONE,
    ),
}



def scene(folder, name, compiled, probe=False, operate=None):
    """What one of two equal queues looks like after the compiled call was tried, or after the operation."""
    options, prepare, call, _ = {**REASONS, **SELDOM}[name]
    folder.mkdir()
    path = folder / "q.dq"
    Handle.compiled = compiled
    keeper = DurableQueue(path, sync=None, **{"serializer": "bytes", **options})
    q = DurableQueue(path, sync=None, **{"serializer": "bytes", **options})
    q._extra = []
    try:
        q.put(b"first")
        q.get()
        q.task_done()
        q._store._look_at = float("inf")
        prepare(q)
        outcome = []
        if probe:
            assert call(q) == LEFT
        if operate:
            try:
                outcome.append(operate(q))
            except Exception as error:
                outcome.append((type(error), str(error).replace(str(folder), "").replace(f"{q._store._salt:08x}", "")))
        lent = 0 if q.closed else keeper.stats().lent
        for handle in q._extra:
            handle.close()
        q.close()
        return outcome, lent, drain(keeper, finish=True, exact=False)
    finally:
        Handle.compiled = True
        q.close()
        keeper.close()


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_usual_is_left_as_it_is(name, tmp_path):
    assert scene(tmp_path / "tried", name, True, probe=True) == scene(tmp_path / "not", name, True)


@pytest.mark.parametrize("name", [*REASONS, *SELDOM])
def test_what_is_not_usual_ends_as_in_python(name, tmp_path):
    for n, operate in enumerate({**REASONS, **SELDOM}[name][3]):
        compiled = scene(tmp_path / f"compiled{n}", name, True, operate=operate)
        assert compiled == scene(tmp_path / f"python{n}", name, False, operate=operate)


def test_a_bounded_file_is_put_into_by_python_only(open_queue):
    q = open_queue(max_bytes=100_000)
    assert q._fast_append is None and q._fast_append_many is None
    q.put("x")
    assert q.get() == "x"


@pytest.mark.parametrize("serializer", ["pickle", "json", "bytes", Bytearrays])
def test_items_of_every_serializer_and_size_come_through_as_in_python(serializer, tmp_path, monkeypatch):
    sizes = [0, 1, 7, 8, 9, 4000, 8191, 8192, 8193, 65_500, 65_536, 70_001, 2 << 20]
    items = [b"x" * n for n in sizes] if serializer in ("bytes", Bytearrays) else ["x" * n for n in sizes]
    for writer in (True, False):
        for reader in (True, False):
            where = tmp_path / f"{writer}{reader}"
            monkeypatch.setattr(Handle, "compiled", writer)
            with DurableQueue(where, serializer=serializer, sync=None) as q:
                for item in items:
                    q.put(item)
                q.put_many(items)
                monkeypatch.setattr(Handle, "compiled", reader)
                with DurableQueue(where, serializer=serializer, sync=None) as other:
                    got = [other.get(timeout=0) for _ in range(5)]
                    got += other.get_many(1000)
                    while len(got) < 2 * len(items):
                        got += other.get_many(1000, timeout=0)
                    assert got == 2 * items
                    for _ in got:
                        other.task_done()
                    assert other.stats().unfinished == 0


def test_a_forked_child_opens_the_queue_anew_and_both_go_on(q):
    q.put_many(range(10))
    assert q.get() == 0
    child = os.fork()
    if not child:
        try:
            ok = q._store._fast_append(b"x", 1) == LEFT and q._store._fast_take([], 1, True, 0, False) == LEFT
            q.put("child")
            ok = ok and q._store._fast_take([], 1, True, 0, False) in (LEFT, 1, 2) and q.get() in (1, 2)
            q.task_done()
            os._exit(0 if ok else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    q.task_done()
    rest = q.get_many(20)
    assert rest[-1] == "child" and rest[0] in (2, 3)
    for _ in rest:
        q.task_done()
    assert q.stats().unfinished == 0


# -- many at a time -----------------------------------------------------------------------------------------------------


def waiting_in(call, enter):
    """Run `call` in a thread that waits for a lock in it, and `enter` meanwhile, under that lock; what the call answered."""
    answers = []
    began = threading.Event()

    def work():
        began.set()
        answers.append(call())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # the thread lets go of the GIL only where it waits for the lock

    def locked():
        thread.start()
        began.wait()
        enter()

    thread = threading.Thread(target=work)
    try:
        yield locked
        thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    yield answers


@pytest.mark.parametrize("end", ["tail", "head"])
def test_a_call_that_waited_for_the_lock_looks_whether_the_handle_was_closed_meanwhile(q, open_queue, end):
    open_queue()  # keeps the queue open, so that its state looks as it did before
    q.put("first of all")
    q.get()
    q.task_done()
    q.put("x")
    store = q._store
    store._look_at = float("inf")
    box = []

    def close():  # as `_leave` does under both locks
        store._calm = store._tail_calm = -1

    calm = store._calm, store._tail_calm
    run = waiting_in(
        (lambda: store._fast_append(b"y", 1)) if end == "tail" else (lambda: store._fast_take(box, 1, True, 0, False)), close
    )
    locked = next(run)
    getattr(store, f"_{end}").hold(locked)
    assert next(run) == [LEFT]
    store._calm, store._tail_calm = calm
    assert not box and q.qsize() == 1


def test_threads_of_one_handle_share_its_read_ahead_and_its_marks(open_queue):
    q = open_queue(ack="get", serializer="bytes", sync=None)
    q.put_many(n.to_bytes(4, "big") * (1 + n % 500) for n in range(6000))
    seen = []

    def consume(n):
        got = []
        with suppress(durableq.Empty):
            while True:
                got += [q.get(False)] if n % 2 else q.get_many(7, False)
        seen.append(got)

    threads = [threading.Thread(target=consume, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(int.from_bytes(item[:4], "big") for got in seen for item in got) == list(range(6000))


def test_handles_that_are_closed_under_busy_threads_touch_no_other_file(tmp_path):
    """Their descriptors go to other files at once; whatever a late call writes would be seen there."""
    path = tmp_path / "q.dq"
    keeper = DurableQueue(path, sync=None, serializer="bytes")
    trap = [tmp_path / f"trap{n}" for n in range(8)]
    put, got, failures = [0], [0], []

    def work(q, side):
        try:
            while True:
                if side:
                    q.put(b"x" * 100)
                    put[0] += 1
                else:
                    with suppress(durableq.Empty):
                        q.get(False)
                        q.task_done()
                        got[0] += 1
        except ValueError:
            pass
        except Exception as error:
            failures.append(error)

    for _ in range(15):
        q = DurableQueue(path, sync=None, serializer="bytes")
        threads = [threading.Thread(target=work, args=(q, side)) for side in (0, 1, 0, 1)]
        for thread in threads:
            thread.start()
        time.sleep(0.005)
        q.close()
        files = [os.open(name, os.O_RDWR | os.O_CREAT) for name in trap]
        for file in files:
            os.truncate(file, 1 << 30)
        for thread in threads:
            thread.join(PATIENCE)
        for file in files:
            assert os.fstat(file).st_blocks == 0
            os.close(file)
    assert not failures
    keeper.close()


def test_forks_in_the_middle_of_other_threads_calls_leave_parent_and_children_sound(q):
    stop = threading.Event()
    errors = []

    def churn():
        try:
            while not stop.is_set():
                q.put("x" * 100)
                q.get()
                q.task_done()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        child = os.fork()
        if not child:
            try:
                q.put("child")
                q.get(timeout=PATIENCE)
                q.task_done()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not errors
    assert q.stats().unfinished == 0


MIXED = """
    q = DurableQueue(path, ack=sys.argv[3], sync=None)
    if sys.argv[2] == "put":
        name, n = int(sys.argv[4]), 0
        while n < 3000:
            if n % 3:
                q.put((name, n, "x" * (n % 700)))
                n += 1
            else:
                q.put_many([(name, m, "x" * (m % 700)) for m in range(n, n + 4)])
                n += 4
        q.close()
        say("done")
    else:
        got, limit = [], 1
        while True:
            items = q.get_many(limit)
            limit = limit % 9 + 1
            if "end" in items:
                break
            for item in items:
                assert item[2] == "x" * (item[1] % 700)
                got.append(item[:2])
                if sys.argv[3] == "task_done":
                    q.task_done()
        if sys.argv[3] == "task_done":
            q.task_done()
        say(got)
"""


def test_compiled_and_pure_processes_share_one_queue(start, path, q):
    pure = {"DURABLEQ_PURE": "1"}
    producers = [start(MIXED, path, "put", "task_done", n, env=pure if n % 2 else None) for n in range(2)]
    consumers = [start(MIXED, path, "get", ack, 0, env=env) for env in (None, pure) for ack in ("task_done", "get")]
    for producer in producers:
        producer.expect("done", patience=PATIENCE * 1.5)
    until(lambda: not q.qsize())
    got = []
    for _ in consumers:
        q.put("end")
        until(lambda: not q.qsize())
    for consumer in consumers:
        got += eval(consumer.hear())
    expected = {(n, m) for n in range(2) for m in range(3000)}
    assert len(got) == len(set(got)) and set(got) >= expected


# -- memory -------------------------------------------------------------------------------------------------------------


def test_many_thousand_rounds_take_no_memory(open_queue):
    q = open_queue(sync=None, serializer="bytes")

    def rounds(n):
        for _ in range(n):
            q.put(b"x" * 100)
            q.get()
            q.task_done()
            q.put_many([b"y", b"z"])
            for _ in q.get_many(2):
                q.task_done()
            q._store._fast_append(bytearray(b"x"), 3)
            q._store._fast_take([], 1 << 70, False, 0, False)
            q._store._fast_ack(-1, 0, 1)

    def pages():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    rounds(3000)
    gc.collect()
    before = pages()
    rounds(20_000)
    gc.collect()
    assert pages() - before < 256  # a megabyte; one lost object a round would be more


def test_no_path_through_a_call_keeps_a_reference(open_queue):
    q = open_queue(sync=None, serializer="bytes")
    q.put(b"")
    q.get()
    q.task_done()
    store, payload, tag, box = q._store, bytes(1000), 70_000, []
    batch = [payload, payload]

    def counts():
        return [sys.getrefcount(thing) for thing in (payload, tag, box, batch, store)]

    before = counts()
    for unfit in (False, True):
        store._unfit = unfit
        for _ in range(50):
            store._fast_append(payload, 3)
            store._fast_append_many(batch, 3)
            store._fast_append_many([payload, bytearray()], 3)
            with suppress(OverflowError):
                store._fast_append(payload, 1 << 80)
            store._fast_take(box, 3, False, 0, False)
            store._fast_ack(*(box[0][:3] if box else (1, 2, 3)))
            store._fast_take(box, 1, True, 0, False)
            box.clear()
    store._unfit = False
    assert counts() == before
    for _ in range(q.stats().lent):
        q.task_done()


def test_a_handle_gives_its_mappings_back(path):
    def mapped():
        with open("/proc/self/maps") as file:
            return sum("q.dq" in line for line in file)

    before = mapped()
    for close in (True, False):
        for _ in range(3):
            q = DurableQueue(path)
            q.put_many("abc")
            q.get_many(3)
            q.task_done()
            assert mapped() > before
            if close:
                q.close()
            del q
            gc.collect()
    until(lambda: mapped() == before)  # who forgets to close leaves it to a thread


def test_no_memory_for_an_item_leaves_it_in_the_queue(start, path, open_queue):
    q = open_queue(serializer="bytes")
    q.put_many([bytes(5 << 20), b"small"])
    child = start(
        """
        import resource
        q = DurableQueue(path, sync=None, serializer="bytes")
        q.qsize()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        for extra in (0, 1 << 20, 6 << 20, 12 << 20):
            resource.setrlimit(resource.RLIMIT_AS, (used + extra, resource.getrlimit(resource.RLIMIT_AS)[1]))
            try:
                q.get()
                break
            except MemoryError:
                say("no memory")
        say("ready")
        hear()
        os._exit(0)
        """,
        path,
    )
    child.expect("no memory")
    while child.hear() != "ready":
        pass
    child.tell()
    child.finish()
    assert [len(item) for item in (q.get(timeout=PATIENCE), q.get(timeout=PATIENCE))] == [5 << 20, 5]


# -- disks that refuse --------------------------------------------------------------------------------------------------


def test_a_batch_that_the_disk_cuts_short_is_not_found_in_part_after_a_boot(path, open_queue):
    """Its put raised, and then the process was killed before it could clean up."""
    q = open_queue(serializer="bytes", sync=None)
    q.put(b"first")
    tail = q._store._control.tail()[0] - q._store._base
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (tail + 3 * 64, hard))
    try:
        assert q._store._fast_append_many([b"e" * 8] * 9, 3) == LEFT
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    q.put(b"f" * 8)  # covers the first of them exactly
    q.close()
    os.unlink(f"{path}-shm")
    with DurableQueue(path, serializer="bytes") as q:
        assert q.get_many(20) == [b"first", b"f" * 8]


def test_an_item_that_was_taken_is_handed_out_though_the_disk_refuses_what_comes_after_it(open_queue, monkeypatch):
    q = open_queue(sync=None, ack="get")
    q.put_many([bytes(300_000), "b"])

    def refuse(self):
        raise OSError(errno.EIO, "sick")

    monkeypatch.setattr(HeadEnd, "_tidy", refuse)
    assert len(q.get_nowait()) == 300_000
    assert q.get_nowait() == "b"
    monkeypatch.undo()
    assert q.qsize() == 0


def test_garbage_that_uses_the_queue_is_not_collected_under_its_lock(start, path):
    child = start(
        """
        q = DurableQueue(path, sync=None)
        class Job:
            def __init__(self, delivery):
                self.delivery, self.me = delivery, self
            def __del__(self):
                self.delivery.nack()
        q.put_many(range(5000))
        q.get()
        q.task_done()
        Job(q.reserve())
        say(len(q.get_many(3000)))
        """,
        path,
    )
    child.expect("3000")


@pytest.mark.parametrize("compiled", [True, False])
def test_a_put_whose_items_are_being_taken_already_wakes_who_sleeps(open_queue, monkeypatch, compiled):
    monkeypatch.setattr(Handle, "compiled", compiled)
    q = open_queue(sync=None, serializer="bytes")
    q.put(b"first")
    q.get()
    q.task_done()
    words = q._store._words
    q._store._look_at = float("inf")
    head, woken = words[state.H_COMMIT], words[state.GET_WORD]
    words[state.GET_WAITERS] = 1
    words[state.H_COMMIT] = words[state.T_COMMIT] + 2  # as if somebody had taken one between the put and its look for sleepers
    q.put_many([b"a", b"b"])
    words[state.H_COMMIT], words[state.GET_WAITERS] = head, 0
    assert words[state.GET_WORD] != woken
