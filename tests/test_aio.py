"""AsyncDurableQueue under asyncio and trio: it waits without a thread for each wait, and a cancelled wait has done nothing."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import subprocess
import sys
import threading
import time

import pytest
from processes import PATIENCE, until

from durableq import ClosedError, DurableQueue, Empty, Full, ShutDown, _os, _store

anyio = pytest.importorskip("anyio", reason="python -m pip install 'durableq[aio]'")

from durableq._watch import GET, Call, Watch  # noqa: E402
from durableq.aio import AsyncDurableQueue  # noqa: E402


@pytest.fixture(params=["asyncio", "trio"])
def run(request):
    """`run(main, *args)` runs an async function in an event loop of this kind."""
    pytest.importorskip(request.param, reason=f"python -m pip install {request.param}")

    def runner(main, *args):
        async def in_time():
            with anyio.fail_after(PATIENCE):
                return await main(*args)

        return anyio.run(in_time, backend=request.param)

    return runner


def waiting(queue):
    """How many tasks wait through this handle."""
    return sum(len(watch.armed) for watch in (queue._items, queue._room, queue._end))


async def wait_until(holds):
    with anyio.fail_after(PATIENCE):
        while not holds():
            await anyio.sleep(0.001)


def when_it_waits(queue, tasks, act):
    """Do something in the loop as soon as a task waits through this handle."""

    async def watch():
        await wait_until(lambda: waiting(queue))
        act()

    tasks.start_soon(watch)


def told_of_its_call(queue):
    """An event that is set when the only task that waits for an item has been called."""
    (call,) = queue._items.armed
    make, called = call.make, threading.Event()

    def make_and_tell():
        make()
        called.set()

    call.make = make_and_tell
    return called


# -- the same methods ------------------------------------------------------------------------------------------------------


def test_its_methods_have_the_parameters_of_the_queue_s():
    common = [name for name in vars(AsyncDurableQueue) if not name.startswith("_") and hasattr(DurableQueue, name)]
    assert {"put", "get", "join", "reserve", "put_many", "get_many", "reserve_many", "task_done", "close"} <= set(common)
    for name in common:
        ours, theirs = getattr(AsyncDurableQueue, name), getattr(DurableQueue, name)
        assert isinstance(ours, property) == isinstance(theirs, property), name
        if not isinstance(ours, property):
            ours, theirs = (list(inspect.signature(method).parameters.values()) for method in (ours, theirs))
            assert ours == theirs, name


def test_items_come_out_in_the_order_in_which_they_went_in(run, path):
    async def main():
        async with AsyncDurableQueue(path) as q:
            await q.put("a")
            await q.put_many(["b", "c", "d"])
            assert await q.get() == "a"
            assert await q.get_many(2) == ["b", "c"]
            assert (await q.reserve()).item == "d"
            assert q.empty()

    run(main)


def test_what_is_put_is_there_for_a_queue_that_does_not_await(run, path, open_queue):
    async def main():
        async with AsyncDurableQueue(path) as q:
            await q.put("x")

    run(main)
    assert open_queue().get_nowait() == "x"


def test_without_block_it_raises_at_once(run, path):
    async def main():
        async with AsyncDurableQueue(path, 1) as q:
            with pytest.raises(Empty):
                await q.get(block=False)
            with pytest.raises(Empty):
                q.get_nowait()
            await q.put("x")
            with pytest.raises(Full):
                await q.put("y", block=False)
            with pytest.raises(Full):
                q.put_nowait("y")

    run(main)


def test_it_raises_after_its_timeout_and_not_before(run, path):
    async def main():
        async with AsyncDurableQueue(path, 1) as q:
            began = time.monotonic()
            with pytest.raises(Empty):
                await q.get(timeout=0.05)
            await q.put("x")
            with pytest.raises(Full):
                await q.put("y", timeout=0.05)
            assert time.monotonic() - began >= 0.099
            with pytest.raises(ValueError, match="non-negative"):
                await q.get(timeout=-1)

    run(main)


def test_a_batch_that_is_refused_says_how_much_of_it_was_put(run, path):
    async def main():
        async with AsyncDurableQueue(path, 3) as q:
            with pytest.raises(Full, match="3 items were put"):
                await q.put_many(range(5), timeout=0.01)
            assert await q.get_many(9) == [0, 1, 2]

    run(main)


def test_task_done_is_of_the_task_that_got_the_item(run, path):
    async def main():
        async with AsyncDurableQueue(path) as q:
            await q.put_many(["slow", "fast"])
            slow_has_it, fast_is_done = anyio.Event(), anyio.Event()

            async def slow():
                assert await q.get() == "slow"
                slow_has_it.set()
                await fast_is_done.wait()

            async def fast():
                await slow_has_it.wait()
                assert await q.get() == "fast"
                q.task_done()
                fast_is_done.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(slow)
                tasks.start_soon(fast)
        # Closed with "slow" not done: were it done in its place, "fast" would come back.
        async with AsyncDurableQueue(path) as q:
            assert await q.get() == "slow"
            assert q.empty()

    run(main)


def test_task_done_is_about_no_dead_letter_of_the_task(run, path):
    async def main():
        async with AsyncDurableQueue(path) as q:
            await q.put_many(["letter", "job"])
            (await q.reserve()).reject()
            assert (q.queue.dead_letters.get(), await q.get()) == ("letter", "job")
            q.task_done()
        async with AsyncDurableQueue(path) as q:
            assert (q.qsize(), q.queue.dead_letters.qsize()) == (0, 1)

    run(main)


def test_the_timeout_of_a_batch_is_for_all_of_it(run, path, monkeypatch):
    async def main():
        async with AsyncDurableQueue(path) as q:
            timeouts = []
            real = q._append

            async def append(bodies, due, block, timeout, before):
                timeouts.append(timeout)
                await anyio.sleep(0.01)
                await real(bodies, due, block, timeout, before)

            monkeypatch.setattr(q, "_append", append)
            await q.put_many([bytes(1 << 20)] * 3, timeout=PATIENCE)
            assert PATIENCE == timeouts[0] > timeouts[1] > timeouts[2]
            assert q.qsize() == 3

    run(main)


# -- being woken -----------------------------------------------------------------------------------------------------------


def test_a_put_in_another_process_wakes_a_waiting_task(run, path, start):
    producer = start("q = DurableQueue(path); say('ready'); hear(); q.put('x')", path)
    producer.expect("ready")

    async def main():
        async with AsyncDurableQueue(path) as q, anyio.create_task_group() as tasks:
            when_it_waits(q, tasks, producer.tell)
            assert await q.get() == "x"

    run(main)


def test_a_get_in_another_process_wakes_a_task_that_waits_for_room(run, path, start):
    async def main():
        async with AsyncDurableQueue(path, 1) as q, anyio.create_task_group() as tasks:
            await q.put("x")
            consumer = start("q = DurableQueue(path); say('ready'); hear(); q.get(); q.task_done(); hear()", path)
            consumer.expect("ready")
            when_it_waits(q, tasks, consumer.tell)
            await q.put("y")
            assert await q.get() == "y"

    run(main)


def test_join_waits_for_what_another_process_has(run, path, start):
    async def main():
        async with AsyncDurableQueue(path) as q, anyio.create_task_group() as tasks:
            await q.put("x")
            consumer = start("q = DurableQueue(path); q.get(); say('has it'); hear(); q.task_done(); hear()", path)
            consumer.expect("has it")
            when_it_waits(q, tasks, consumer.tell)
            await q.join()
            assert q.stats().unfinished == 0

    run(main)


def test_a_waiting_task_gets_what_a_killed_process_held(run, path, start):
    async def main():
        async with AsyncDurableQueue(path) as q, anyio.create_task_group() as tasks:
            await q.put("x")
            holder = start("q = DurableQueue(path); q.get(); say('has it'); hear()", path)
            holder.expect("has it")
            when_it_waits(q, tasks, holder.kill)
            delivery = await q.reserve()
            assert (delivery.item, delivery.deliveries) == ("x", 2)

    run(main)


def test_a_waiting_task_gets_a_delayed_item_when_it_falls_due(run, path):
    async def main():
        async with AsyncDurableQueue(path) as q:
            began = time.time()
            await q.put("later", delay=0.2)
            assert await q.get() == "later"
            assert time.time() - began >= 0.19  # a delay counts in milliseconds

    run(main)


def test_many_waiting_tasks_get_one_item_each_and_share_a_thread(run, path, open_queue):
    async def main():
        async with AsyncDurableQueue(path) as q:
            got = []

            async def consume():
                got.append(await q.get())

            before = set(threading.enumerate())
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(consume)
                await wait_until(lambda: waiting(q) == 200)
                assert len(set(threading.enumerate()) - before) == 1
                open_queue().put_many(range(200))
            assert sorted(got) == list(range(200))

    run(main)


def test_waiting_tasks_use_no_time_of_the_processor(run, path):
    async def main():
        async with AsyncDurableQueue(path, 1) as q, anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(q.get)
            await wait_until(lambda: waiting(q) == 50)
            before = time.process_time()
            await anyio.sleep(1)
            assert time.process_time() - before < 0.3  # a loop that runs free takes it all
            tasks.cancel_scope.cancel()

    run(main)


def test_shutdown_ends_the_waits(run, path, open_queue):
    async def main():
        async with AsyncDurableQueue(path) as q:
            ended = []

            async def consume():
                with pytest.raises(ShutDown):
                    await q.get()
                ended.append(1)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(consume)
                await wait_until(lambda: waiting(q) == 3)
                open_queue().shutdown()
            assert len(ended) == 3

    run(main)


def test_after_a_shutdown_a_task_waits_for_what_waits_for_its_time(run, path):
    async def main():
        async with AsyncDurableQueue(path) as q:
            await q.put("x", delay=0.2)
            q.shutdown()
            with pytest.raises(Empty):
                q.get_nowait()
            assert await q.get() == "x"
            with pytest.raises(ShutDown):
                await q.get()

    run(main)


def test_close_ends_the_waits(run, path):
    async def main():
        q = AsyncDurableQueue(path, 1)
        await q.put("x")

        async def must_end(wait, *args):
            with pytest.raises(ClosedError):
                await wait(*args)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(must_end, q.put, "y")
            tasks.start_soon(must_end, q.join)
            await wait_until(lambda: waiting(q) == 2)
            await q.close()
        assert q.closed

    run(main)


def test_a_queue_is_closed_although_its_block_was_cancelled(run, path):
    async def main():
        with anyio.CancelScope() as scope:
            async with AsyncDurableQueue(path) as q:
                scope.cancel()
                await q.get()
        assert q.closed

    run(main)


def test_a_task_that_never_has_to_wait_lets_the_others_run(run, path):
    async def main():
        async with AsyncDurableQueue(path, sync=None, ack="get") as q, anyio.create_task_group() as tasks:
            await q.put_many(range(50_000))
            others = []

            async def other():
                others.append(1)

            tasks.start_soon(other)
            while not others:
                await q.get(block=False)  # Empty if it comes to that

    run(main)


# -- being cancelled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ack", ["task_done", "get"])
def test_of_thousands_of_gets_that_are_cancelled_at_random_none_has_taken_anything(run, path, ack):
    count, got, cancelled = 2000, [], 0
    rng = random.Random(8)

    async def main():
        nonlocal cancelled
        async with AsyncDurableQueue(path, ack=ack, sync=None) as q, anyio.create_task_group() as tasks:

            async def produce():
                for n in range(count):
                    q.put_nowait(n)
                    if rng.random() < 0.7:
                        await anyio.sleep(rng.random() * 0.0005)

            async def consume():
                nonlocal cancelled
                while len(got) < count:
                    with anyio.CancelScope() as scope:
                        scopes.append(scope)
                        got.append(await q.get())
                    cancelled += scope.cancelled_caught

            async def cancel():
                while len(got) < count:
                    if scopes:
                        scopes.pop(rng.randrange(len(scopes))).cancel()
                    await anyio.sleep(0)
                stats.append(q.stats())
                tasks.cancel_scope.cancel()

            scopes, stats = [], []
            for _ in range(8):
                tasks.start_soon(consume)
            tasks.start_soon(produce)
            tasks.start_soon(cancel)
        assert (stats[0].ready, stats[0].lent) == (0, count if ack == "task_done" else 0)

    run(main)
    assert sorted(got) == list(range(count))  # each once, none missing
    assert cancelled > 500


def test_gets_cancelled_by_asyncio_itself_and_timed_out_by_wait_for_have_taken_nothing(path, start):
    producer = start(
        """
        q = DurableQueue(path, ack="get", sync=None)
        say("ready")
        hear()
        for n in range(1500):
            q.put(n)
            time.sleep(0.0002)
        say("done")
        """,
        path,
    )
    producer.expect("ready")
    got = []

    async def consume(q):
        while len(got) < 1500:
            with contextlib.suppress(asyncio.CancelledError, asyncio.TimeoutError):
                got.append(await asyncio.wait_for(q.get(), random.random() * 0.001))

    async def main():
        async with AsyncDurableQueue(path, ack="get", sync=None) as q:
            consumers = [asyncio.create_task(consume(q)) for _ in range(5)]
            producer.tell()
            while len(got) < 1500:
                random.choice(consumers).cancel()
                await asyncio.sleep(0.001)
            for consumer in consumers:
                while not consumer.done():
                    consumer.cancel()
                    await asyncio.sleep(0)
            assert q.empty()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert sorted(got) == list(range(1500))


def test_a_get_that_is_cancelled_after_it_was_called_has_taken_nothing(run, path, monkeypatch):
    async def main():
        async with AsyncDurableQueue(path) as q, anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def consume():
                with scope:
                    await q.get()

            tasks.start_soon(consume)
            await wait_until(lambda: waiting(q))
            called = told_of_its_call(q)
            q.put_nowait("x")
            assert called.wait(PATIENCE)  # the loop does not run: the task is called, and cannot know it yet
            scope.cancel()
        assert scope.cancelled_caught

    run(main)
    with DurableQueue(path) as q:
        assert q.reserve(False).deliveries == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_wake_that_a_cancelled_task_cannot_use_goes_on_to_the_next_sleeper(run, path, open_queue, monkeypatch, when):
    monkeypatch.setattr(_store, "RECHECK", 3600.0)  # nobody looks again by himself
    other, got = open_queue(), []

    def asleep(queue):
        return sum(owner.waiting for owner in queue.stats().owners)

    async def main():
        async with AsyncDurableQueue(path) as q:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(q.get)
                await wait_until(lambda: asleep(q) == 1)
                called = told_of_its_call(q)
                sleeper = threading.Thread(target=lambda: got.append(other.get()), daemon=True)
                sleeper.start()
                await wait_until(lambda: asleep(q) == 2)
                if when == "after":
                    q.put_nowait("x")
                    until(lambda: called.is_set() or got)  # the loop does not run
                tasks.cancel_scope.cancel()
            if when == "before":
                q.put_nowait("x")
            sleeper.join(PATIENCE)  # before the close, which wakes everybody
            assert got == ["x"]

    run(main)


def test_a_put_that_is_cancelled_has_put_nothing(run, path):
    async def main():
        async with AsyncDurableQueue(path, 1) as q:
            await q.put("x")
            with anyio.move_on_after(0.05):
                await q.put("y")
            assert await q.get() == "x"
            assert q.empty()

    run(main)


# -- where it runs ---------------------------------------------------------------------------------------------------------


def test_under_sync_0_the_loop_goes_on_while_a_put_waits_for_the_disk(run, path, monkeypatch):
    async def main():
        async with AsyncDurableQueue(path, sync=0) as q, anyio.create_task_group() as tasks:
            loop_went_on = threading.Event()
            real = _os.fdatasync

            def slow_disk(fd):
                assert loop_went_on.wait(PATIENCE)
                real(fd)

            monkeypatch.setattr(_os, "fdatasync", slow_disk)
            tasks.start_soon(q.put, "x")
            await wait_until(lambda: not q.empty())
            loop_went_on.set()

    run(main)


def test_two_event_loops_may_share_a_handle(path):
    async def consume(q, n):
        return [await q.get() for _ in range(n)]

    q = AsyncDurableQueue(path, ack="get", sync=None)
    results = []
    loops = [
        threading.Thread(target=lambda: results.append(asyncio.run(consume(q, 50))), daemon=True) for _ in range(2)
    ]
    for loop in loops:
        loop.start()
    until(lambda: waiting(q) == 2)
    for n in range(100):
        q.put_nowait(n)
    for loop in loops:
        loop.join(PATIENCE)
    assert sorted(results[0] + results[1]) == list(range(100))
    asyncio.run(q.close())


@pytest.mark.parametrize("how", ["closed", "stopped"])
def test_a_loop_that_ended_while_a_task_waited_holds_up_nobody_else(path, how):
    q = AsyncDurableQueue(path)
    loop = asyncio.new_event_loop()
    forgotten = loop.create_task(q.get())
    loop.run_until_complete(asyncio.sleep(0))
    until(lambda: waiting(q) == 1)
    if how == "closed":
        loop.close()

    async def main():
        task = asyncio.create_task(q.get())
        await wait_until(lambda: waiting(q) == 2)
        q.put_nowait("x")
        assert await task == "x"
        await q.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    if how == "stopped":
        forgotten.cancel()
        loop.run_until_complete(asyncio.gather(forgotten, return_exceptions=True))
        loop.close()
    else:
        forgotten._log_destroy_pending = False


def test_a_forked_child_waits_for_itself(path, tmp_path):
    q, of_child = AsyncDurableQueue(path, sync=None), AsyncDurableQueue(tmp_path / "child.dq", sync=None)

    async def child():
        task = asyncio.create_task(of_child.get())
        await wait_until(lambda: waiting(of_child))
        assert not waiting(q)
        await of_child.put("x")
        await q.put(await task)

    async def parent():
        waits = [asyncio.create_task(queue.get()) for queue in (q, of_child)]
        await wait_until(lambda: waiting(q) and waiting(of_child))
        waits[1].cancel()
        pid = os.fork()
        if pid == 0:
            runner = threading.Thread(target=lambda: asyncio.run(child()))
            runner.start()
            runner.join(PATIENCE)
            os._exit(0)
        assert await waits[0] == "x"
        await asyncio.to_thread(os.waitpid, pid, 0)
        await q.close()
        await of_child.close()

    asyncio.run(asyncio.wait_for(parent(), PATIENCE))


def test_when_the_system_has_room_for_a_thread_again_the_next_wait_is_woken(path, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    async def main():
        async with AsyncDurableQueue(path) as q:
            with monkeypatch.context() as shortage:
                shortage.setattr(threading.Thread, "start", refuse)
                with pytest.raises(OSError, match="can't start new thread"):
                    await q.get(timeout=0.1)
            task = asyncio.create_task(q.get())
            await wait_until(lambda: waiting(q))
            await q.put("x")
            assert await task == "x"

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_without_anyio_the_import_says_what_to_install():
    code = "import sys; sys.modules['anyio'] = None\nimport durableq.aio"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "python -m pip install 'durableq[aio]'" in done.stderr


def test_whoever_arms_a_call_is_told_if_there_is_nothing_to_wait_for(q):
    watch = Watch(q._store, GET)
    call = Call(lambda: None, q._store.may_take)
    assert watch.arm(call)
    watch.disarm(call, used=False)
    q.put("x")
    assert not watch.arm(call)
    watch.disarm(call, used=False)
