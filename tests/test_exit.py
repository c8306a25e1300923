"""How a process ends in order with its queues open: nobody in it finds them closed, and what it wrote is on the disk."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from processes import PATIENCE

from durableq import DurableQueue


def run(program, *arguments):
    """Run a program to its end in order; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.splitlines()


def test_a_daemon_thread_that_waits_is_left_waiting(path):
    for _ in range(5):
        run(
            """
            import sys, threading
            from durableq import DurableQueue
            q = DurableQueue(sys.argv[1])
            def work():
                while True:
                    q.get()
                    q.task_done()
            threading.Thread(target=work, daemon=True).start()
            for n in range(30):
                q.put(n)
            q.join()
            """,
            path,
        )


def test_threads_of_a_child_work_on_to_their_end(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("""
        import multiprocessing, threading
        import durableq
        def loop(q, told):
            told.put("here")
            for item in iter(q.get, None):
                print("got", item, flush=True)
        def child(q, told):
            q.qsize()  # it is open before the process comes to its end
            threading.Thread(target=loop, args=(q, told)).start()
        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            q, told = durableq.Queue(), context.SimpleQueue()
            process = context.Process(target=child, args=(q, told))
            process.start()
            told.get()
            for item in (1, 2, None):
                q.put(item)
            process.join()
        """))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout.splitlines(), done.stderr, done.returncode) == (["got 1", "got 2"], "", 0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("writes", ["already", "never"])
def test_a_handler_at_exit_can_put_and_it_is_synced(path, when, writes):
    """Registered before durableq was imported it comes after the handles have been left."""
    told = run(
        f"""
        import atexit, sys
        def last():
            q.put("last")
            print(len(syncs) > 0)
        if {when!r} == "before":
            atexit.register(last)
        from durableq import DurableQueue, _os
        syncs = []
        real = _os.fdatasync
        _os.fdatasync = lambda fd: (syncs.append(fd), real(fd))
        q = DurableQueue(sys.argv[1])
        if {writes!r} == "already":
            q.put("first")
        if {when!r} == "after":
            atexit.register(last)
        """,
        path,
    )
    if when == "before":
        assert told == ["True"]
    with DurableQueue(path) as q:
        assert q.get_many(5)[-1] == "last"


def test_what_was_held_goes_back_at_once(path, q):
    q.put("x")
    run("import sys; from durableq import DurableQueue; q = DurableQueue(sys.argv[1]); q.get()", path)
    assert q.get_nowait() == "x"


LATE = """
import atexit, errno, os, sys
def last():
    try:
        q.put("late")
    except (ValueError, OSError) as error:
        print(type(error).__name__)
atexit.register(last)  # before durableq is there: it comes after its handles have been left
from durableq import DurableQueue, _os
q = DurableQueue(sys.argv[1], sync=0)
q.put("early")
"""


def test_a_handle_that_was_closed_stays_closed(path):
    assert run(LATE + "q.close()", path) == ["ClosedError"]


def test_a_handle_that_was_poisoned_stays_poisoned(path):
    sick = """
def fail(fd):
    raise OSError(errno.EIO, "Input/output error")
real, _os.fdatasync = _os.fdatasync, fail
try:
    q.put("lost, perhaps")
except OSError:
    pass
_os.fdatasync = real
"""
    assert run(LATE + sick, path) == ["PoisonedError"]


def test_what_the_program_had_in_hand_goes_back_before_it_waits_for_its_children(path, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("""
        import multiprocessing, sys
        import durableq
        def work(q):
            for _ in range(2):
                print(q.get(), flush=True)
                q.task_done()
        if __name__ == "__main__":
            q = durableq.JoinableQueue(path=sys.argv[1])
            q.put("a")
            q.put("b")
            q.get()
            multiprocessing.get_context("fork").Process(target=work, args=(q,)).start()
            sys.exit("it fails")
        """))
    done = subprocess.run([sys.executable, program, path], capture_output=True, text=True, timeout=PATIENCE)
    assert sorted(done.stdout.splitlines()) == ["a", "b"]


def test_what_a_daemon_thread_puts_while_the_process_leaves_is_synced_or_owed(path):
    told = run(
        """
        import sys, threading
        from durableq import DurableQueue, _os
        q = DurableQueue(sys.argv[1], sync=60, serializer="bytes")
        q.put(b"first")
        syncs = []
        real, leaving, done = _os.fdatasync, threading.Event(), threading.Event()
        def fdatasync(fd):
            if threading.current_thread() is threading.main_thread():
                leaving.set()
                done.wait(20)
                print(len(syncs) > 0, flush=True)
            else:
                syncs.append(fd)
            real(fd)
        _os.fdatasync = fdatasync
        def work():
            leaving.wait()
            q.put(b"last")
            done.set()
            threading.Event().wait()
        threading.Thread(target=work, daemon=True).start()
        """,
        path,
    )
    assert told[0] == "True"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="there the threads have ended when its files go")
def test_threads_of_a_child_work_on_to_their_end_with_a_queue_of_the_child_s_own(tmp_path):
    """Its files go when the child does, which is before these threads have ended, and again and again they look."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("""
        import multiprocessing, os, threading
        import durableq
        def child():
            q = durableq.JoinableQueue()
            def loop():
                while os.path.exists(q.path):
                    q.qsize()
                for item in iter(q.get, None):
                    print("did", item, flush=True)
                    q._store._look_at = 0.0
                    q.task_done()
            threading.Thread(target=loop).start()
            q.put_many([1, 2, 3, None])
        if __name__ == "__main__":
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            print(process.exitcode)
        """))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout.splitlines(), done.stderr) == (["did 1", "did 2", "did 3", "0"], "")
