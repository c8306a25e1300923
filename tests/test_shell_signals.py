"""A signal that comes in the moment before a wait begins ends that wait.

That moment is a few hundred nanoseconds long. A signal that another thread takes is the same for the waiting one, whose
system call nothing interrupts then either, and it can be sent at leisure.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest
from processes import until

from durableq import DurableQueue
from durableq.cli import main
from durableq.cli._framing import splitter
from durableq.cli._input import batches
from durableq.cli._output import Outlet
from durableq.cli._signals import Signals, Stopped

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def _asleep(thread: int) -> bool:
    """Whether this thread of ours is in a poll."""
    with open(f"/proc/self/task/{thread}/wchan") as file:
        return "poll" in file.read()


def _signalled_while(wait: Callable[[], object], number: int) -> None:
    """Have another thread take a signal while this one is in `wait`."""
    waiter = threading.get_native_id()

    def take() -> None:
        until(lambda: _asleep(waiter))
        signal.pthread_kill(threading.get_ident(), number)

    taker = threading.Thread(target=take)
    taker.start()
    try:
        wait()
    finally:
        taker.join()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_wait_for_input_ends(pipe, number):
    with Signals() as signals, pytest.raises(Stopped) as stopped:
        _signalled_while(lambda: list(batches(pipe[0], splitter("line", 1), signals)), number)
    assert stopped.value.number == number


@pytest.mark.parametrize("number", NUMBERS)
def test_a_wait_for_room_in_a_pipe_ends(pipe, number):
    with Signals() as signals, pytest.raises(Stopped) as stopped:
        _signalled_while(lambda: Outlet(pipe[1], signals).write([bytes(4 << 20)]), number)
    assert stopped.value.number == number


def test_who_is_deaf_hears_the_second_signal_only(pipe):
    poll = select.poll()
    with Signals() as signals:
        with pytest.raises(Stopped):
            _signalled_while(lambda: signals.poll(poll), signal.SIGTERM)
        assert signals.poll(poll, 1, deaf=True) == []
        with pytest.raises(Stopped):
            _signalled_while(lambda: signals.poll(poll, deaf=True), signal.SIGINT)


def test_signals_of_others_are_no_news(pipe):
    """A signal that somebody else handles wakes the wait, which goes on."""
    poll = select.poll()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: os.write(pipe[1], b"heard"))
    try:
        poll.register(pipe[0], select.POLLIN)
        with Signals() as signals:
            _signalled_while(lambda: signals.poll(poll), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert os.read(pipe[0], 9) == b"heard"


def test_get_into_a_file_hears_the_first_signal_also_if_it_only_looks(path, capfd, monkeypatch):
    with DurableQueue(path, serializer="bytes") as q:
        q.put_many([b"%d" % n for n in range(1000)])
    write = os.writev

    def signalled(fd: int, pieces: list[memoryview]) -> int:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGTERM)
        return write(fd, pieces)

    monkeypatch.setattr(os, "writev", signalled)
    assert main(["get", "--keep", str(path)]) == 128 + signal.SIGTERM
    shown = capfd.readouterr().out.split()
    assert shown == [str(n) for n in range(len(shown))] and 0 < len(shown) < 100


def test_afterwards_all_is_as_before():
    handlers = [signal.getsignal(number) for number in NUMBERS]
    files = psutil.Process().num_fds()
    with Signals():
        assert [signal.getsignal(number) for number in NUMBERS] != handlers
    assert [signal.getsignal(number) for number in NUMBERS] == handlers
    assert psutil.Process().num_fds() == files
    assert signal.set_wakeup_fd(-1) == -1
