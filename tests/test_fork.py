"""Handles in forked children, also of programs that have threads."""

from __future__ import annotations

import pytest
from processes import PATIENCE

from durableq import DurableQueue

# Each test runs in a process of its own, so that nothing of the test runner is forked along.
HELPERS = """
def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def wait_for(child):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status
"""


def test_a_forked_child_may_use_the_handle_it_inherited(start, path):
    start(
        HELPERS
        + """
q = DurableQueue(path)
q.put("to the child")
def work():
    assert q.get(timeout=30) == "to the child"
    q.task_done()
    q.put("to the parent")
wait_for(fork(work))
assert q.get(timeout=30) == "to the parent"
""",
        path,
    ).finish()


def test_a_child_that_ends_does_not_give_back_what_its_parent_holds(start, path, q):
    q.put("x")
    parent = start(
        HELPERS
        + """
q = DurableQueue(path)
item = q.get()
wait_for(fork(lambda: None))
wait_for(fork(lambda: q.qsize()))
wait_for(fork(lambda: q.close()))
say(item)
hear()
""",
        path,
    )
    parent.expect("x")
    assert q.empty()
    assert q.stats().lent == 1
    parent.kill()
    assert q.get(timeout=PATIENCE) == "x"


def test_a_killed_child_gives_back_what_it_held_and_not_what_its_parent_holds(start, path):
    start(
        HELPERS
        + """
q = DurableQueue(path)
q.put_many(["parent's", "child's"])
assert q.get() == "parent's"
def work():
    assert q.get() == "child's"
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(fork(work), 0)
assert q.get(timeout=30) == "child's"
try:
    q.get(timeout=0.2)
except durableq.Empty:
    pass
else:
    raise AssertionError("the parent's item came back although the parent lives")
""",
        path,
    ).finish()


def test_a_killed_parent_gives_back_what_it_held_although_its_child_lives(start, path, q):
    # The child inherits the parent's descriptors; a lock on one of them must not keep the parent alive in our eyes.
    q.put("x")
    parent = start(
        HELPERS
        + """
q = DurableQueue(path)
item = q.get()
child = fork(lambda: hear())
say(item)
os.waitpid(child, 0)
""",
        path,
    )
    parent.expect("x")
    parent.kill()
    assert q.get(timeout=PATIENCE) == "x"
    parent.tell()


def test_a_killed_parent_gives_back_what_it_held_although_a_program_it_started_lives(start, path, q):
    q.put("x")
    parent = start(
        """
        import subprocess
        q = DurableQueue(path)
        item = q.get()
        subprocess.Popen([sys.executable, "-c", "input()"], close_fds=False, stdout=subprocess.DEVNULL)
        say(item)
        hear()
        """,
        path,
    )
    parent.expect("x")
    parent.kill()
    assert q.get(timeout=PATIENCE) == "x"
    parent.tell()


def test_a_child_s_task_done_finishes_its_own_item_first(start, path, open_queue):
    start(
        HELPERS
        + """
q = DurableQueue(path)
q.put_many(["parent's", "child's"])
q.get()
def work():
    q.get()
    q.task_done()
wait_for(fork(work))
""",
        path,
    ).finish()
    assert open_queue().get_many(5) == ["parent's"]


def test_a_parent_s_task_done_finishes_what_its_child_got(start, path, q):
    q.put("x")
    start(
        HELPERS
        + """
q = DurableQueue(path)
def work():
    q.get()
    say("got")
    hear()
child = fork(work)
while not q.empty():
    time.sleep(0.005)
q.task_done()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
assert q.empty() and q.stats().unfinished == 0
""",
        path,
    ).finish()


def test_a_delivery_of_the_parent_is_not_the_child_s_to_settle_twice(start, path):
    start(
        HELPERS
        + """
q = DurableQueue(path)
q.put("x")
delivery = q.reserve()
def work():
    try:
        delivery.ack()
    except ValueError:
        pass
wait_for(fork(work))
try:
    delivery.ack()
except ValueError:
    pass
assert q.stats().unfinished == 0
""",
        path,
    ).finish()


def test_forking_while_a_thread_waits_in_get_hangs_neither_side(start, path):
    start(
        HELPERS
        + """
q = DurableQueue(path)
got = []
waiter = threading.Thread(target=lambda: got.append(q.get()))
waiter.start()
while not any(owner.waiting for owner in q.stats().owners):
    time.sleep(0.005)
wait_for(fork(lambda: q.put("from the child")))
waiter.join(30)
assert got == ["from the child"], got
""",
        path,
    ).finish()


def test_forking_while_threads_put_and_get_hangs_and_loses_nothing(start, path):
    start(
        HELPERS
        + """
q = DurableQueue(path)
stop = threading.Event()
counts = [0, 0, 0]
def churn(me):
    while not stop.is_set():
        q.put(("parent", me))
        q.get()
        q.task_done()
        counts[me] += 1
threads = [threading.Thread(target=churn, args=(me,)) for me in range(3)]
for thread in threads:
    thread.start()
def work():
    for number in range(20):
        q.put(("child", number))
        q.get(timeout=30)
        q.task_done()
for _ in range(20):
    wait_for(fork(work))
stop.set()
for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
assert min(counts) > 0
assert q.stats().unfinished == 0, q.stats()
""",
        path,
    ).finish()


def test_threads_of_a_child_may_all_start_with_the_handle_at_once(start, path):
    start(
        HELPERS
        + """
q = DurableQueue(path)
def work():
    barrier = threading.Barrier(8)
    failures = []
    def use(me):
        try:
            barrier.wait()
            q.put(me)
            q.get(timeout=30)
            q.task_done()
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=use, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures
for _ in range(10):
    wait_for(fork(work))
assert q.stats().unfinished == 0
assert len(q.stats().owners) == 1
""",
        path,
    ).finish()


def test_parent_and_children_that_put_at_once_lose_nothing(start, path, open_queue):
    start(
        HELPERS
        + """
q = DurableQueue(path)
def work(name):
    for number in range(300):
        q.put((name, number))
children = [fork(lambda name=name: work(name)) for name in range(3)]
work("parent")
for child in children:
    wait_for(child)
""",
        path,
    ).finish()
    items = open_queue().get_many(5000)
    assert len(items) == 1200
    for name in (0, 1, 2, "parent"):
        assert [number for who, number in items if who == name] == list(range(300))


def test_a_grandchild_may_use_the_handle_too(start, path):
    start(
        HELPERS
        + """
q = DurableQueue(path)
wait_for(fork(lambda: wait_for(fork(lambda: q.put("from the grandchild")))))
assert q.get(timeout=30) == "from the grandchild"
""",
        path,
    ).finish()


def test_forking_with_a_closed_handle_is_fine(start, path):
    start(HELPERS + "q = DurableQueue(path); q.close(); wait_for(fork(lambda: None))", path).finish()


def test_a_child_of_a_handle_that_nobody_uses_costs_no_descriptor(start, path):
    start(
        HELPERS
        + """
q = DurableQueue(path)
before = len(os.listdir("/proc/self/fd"))
def work():
    assert len(os.listdir("/proc/self/fd")) <= before
    q.put("x")
    assert len(os.listdir("/proc/self/fd")) <= before
wait_for(fork(work))
""",
        path,
    ).finish()


IN_ANOTHER_THREAD = """
from durableq import _handle
reached, go = threading.Event(), threading.Event()

def stall(method):
    real = getattr(_handle.Handle, method)
    def stalled(self, *args):
        result = real(self, *args)
        if threading.current_thread() is not threading.main_thread():
            reached.set()
            go.wait()
        return result
    setattr(_handle.Handle, method, stalled)

def meanwhile(work):
    threading.Thread(target=work, daemon=True).start()
    reached.wait()
    if os.fork() == 0:
        say("forked")
        hear()
        os._exit(0)
    hear()
"""


def test_a_child_forked_while_another_thread_opens_a_handle_keeps_no_lock_of_it(start, path, q):
    parent = start(
        IN_ANOTHER_THREAD
        + """
stall("_claim")
meanwhile(lambda: DurableQueue(path))
""",
        path,
    )
    parent.expect("forked")
    parent.kill()
    with DurableQueue(path):  # the cold lock is free
        assert len(q.stats().owners) == 2


def test_a_child_forked_while_another_thread_closes_a_handle_keeps_no_lock_of_it(start, path, q):
    parent = start(
        IN_ANOTHER_THREAD
        + """
q = DurableQueue(path)
q.put("x")
q.get()
stall("_wake_everybody")
meanwhile(q.close)
""",
        path,
    )
    parent.expect("forked")
    parent.kill()
    with DurableQueue(path):
        assert len(q.stats().owners) == 2
    assert q.get(timeout=PATIENCE) == "x"


@pytest.mark.parametrize("put", ["put('x')", "put_many(['x'])", "put('x', delay=0.001)"])
def test_what_a_child_puts_first_goes_to_the_file_that_is_at_the_path_by_then(start, path, put):
    start(
        HELPERS
        + f"""
q = DurableQueue(path)
replaced, told = os.pipe()
def work():
    os.read(replaced, 1)
    q.{put}
child = fork(work)
q.close()
os.unlink(path)
q = DurableQueue(path)
os.write(told, b"x")
wait_for(child)
assert q.get(timeout=10) == "x"
assert q.stats().damaged == 0
""",
        path,
    ).finish()
