"""What a queue is doing, over time: the numbers, and how each kind of output shows them. Screens are a real emulator's."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys

import pyte
import pytest
from processes import PATIENCE, until

from durableq import _progress
from durableq._progress import Holder, View, Watch, block, duration, open_display, summary


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and shows what one would show."""

    def __init__(self, columns=100, lines=24):
        super().__init__()
        self._screen = pyte.Screen(columns, lines)
        self._feed = pyte.Stream(self._screen)

    encoding = "utf-8"
    gone = False
    """Whether it was closed."""

    def isatty(self):
        return True

    def flush(self):
        if self.gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(self, text):
        self.flush()
        self._feed.feed(text.replace("\n", "\r\n"))
        return len(text)

    def lines(self):
        return [line.rstrip() for line in self._screen.display if line.strip()]


@pytest.fixture(params=["rich", "plain"])
def terminal(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm-256color")
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich.console", None)  # as where it is not installed
    return Terminal()


@pytest.fixture
def root_handler():
    """`root_handler(stream)` logs to a stream."""
    handlers = []

    def add(stream):
        handlers.append(logging.StreamHandler(stream))
        logging.getLogger().addHandler(handlers[-1])
        return handlers[-1]

    yield add
    for handler in handlers:
        logging.getLogger().removeHandler(handler)


def view_of(q, done=0, rate=0.0, left=None, holders=()):
    return View(q.stats(), done, rate, 0.0, left, tuple(holders))


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_a_watch_counts_what_is_done_since_it_began(q):
    q.put_many(range(5))
    q.reserve(timeout=0).ack()
    watch = Watch(q)
    q.reserve(timeout=0).ack()
    q.reserve(timeout=0).ack()
    view = watch.look()
    assert (view.done, view.failed, view.stats.ready) == (2, 0, 2)
    assert view.rate > 0 and view.left > 0


def test_what_is_put_meanwhile_is_not_taken_for_done(q):
    watch = Watch(q)
    q.put_many(range(5))
    view = watch.look()
    assert (view.done, view.rate) == (0, 0.0)
    assert view.arriving > 0


def test_a_dead_letter_is_failed_and_not_done_and_a_redrive_undoes_nothing(q):
    q.put("x")
    watch = Watch(q)
    q.reserve(timeout=0).reject()
    assert (watch.look().done, watch.look().failed) == (0, 1)
    q.redrive()
    assert (watch.look().done, watch.look().failed) == (0, 0)


def test_the_time_left_is_unknown_while_nothing_gets_done_and_zero_when_nothing_is_left(q):
    watch = Watch(q)
    assert watch.look().left == 0
    q.put("x")
    assert watch.look().left is None


def test_a_rate_is_that_of_the_last_seconds_only(q, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: clock[0])
    q.put_many(range(1000))
    watch = Watch(q)
    for _ in range(20):
        for delivery in q.reserve_many(10):
            delivery.ack()
        clock[0] += 1
        view = watch.look()
    assert view.rate == pytest.approx(10)
    assert view.left == pytest.approx(80)
    clock[0] += 100
    watch.look()
    assert watch.look().rate < 1.0


def test_a_watch_sees_what_each_process_is_on_and_for_how_long(q, start, path):
    q.put({"resize": "cat.png"})
    child = start("q = DurableQueue(path); d = q.reserve(); say('has it'); hear(); d.ack(); say('done'); q.get()", path)
    child.expect("has it")
    watch = Watch(q)
    watch.look()
    (holder,) = watch.look().holders
    assert (holder.pid, holder.on, holder.deliveries) == (child.pid, "{'resize': 'cat.png'}", 1)
    assert 0 < holder.seconds < PATIENCE
    child.tell()
    child.expect("done")
    assert [holder.on for holder in watch.look().holders] == [None]


def test_an_item_that_cannot_be_decoded_does_not_end_the_watch(q, open_queue, start, path):
    q.put(1 + 2j)
    child = start("q = DurableQueue(path); d = q.reserve(); say('has it'); hear()", path)
    child.expect("has it")
    other = open_queue(serializer="json")
    (lent,) = other.peek_lent()
    assert Watch(other).look().holders[0].on == f"item {lent.id}"


# -- as text -----------------------------------------------------------------------------------------------------------


def test_the_summary_has_all_that_matters_in_one_line(q):
    q.put_many(range(7))
    q.put("later", delay=60)
    delivery = q.reserve(timeout=0)
    text = summary(view_of(q, done=3, rate=2.5, left=200.0))
    assert text == "3 done, 0 failed, 1 in flight, 6 waiting, 1 delayed, 2.5/s, 3:20 min left"
    delivery.ack()


def test_the_block_shows_the_longest_at_work_first_and_never_more_than_fits(q):
    holders = [Holder(n, f"worker {n}", f"item {n}" if n % 2 else None, 1 + (n == 3), n) for n in range(1, 9)]
    lines = block(view_of(q, holders=holders), 60, "#+-.", room=6)
    assert len(lines) == 6 and all(len(line) <= 60 for line in lines)
    assert "item 7 (7 s): worker 7" in lines[2]
    assert lines[-1].strip() == "and 5 more"
    assert "item 3 (3 s, delivery 2)" in "".join(block(view_of(q, holders=holders), 60, "#+-."))


def test_the_bar_is_full_when_all_is_done_and_half_way_half(q):
    assert "|" + "#" * 20 + "|" in block(view_of(q), 60, "#+-.")[0]
    q.put_many(range(5))
    assert "|##########..........|" in block(view_of(q, done=5), 60, "#+-.")[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3:20 min"), (18180, "5:03 h"), (10**6, "11 days")]
)
def test_a_duration_is_told_as_people_do(seconds, text):
    assert duration(seconds) == text


def test_what_comes_out_of_a_queue_cannot_steer_the_terminal(q, start, path):
    class Evil:
        def __repr__(self):
            return "\x1b[2J\x07gone"

    q.put("x")
    child = start("q = DurableQueue(path); q.get(); say('has it'); hear()", path)
    child.expect("has it")
    assert _progress.printable(repr(Evil())) == "?[2J?gone"
    (holder,) = Watch(q).look().holders
    assert holder.name.isprintable()


# -- displays ----------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_the_queue_and_who_is_on_what(q, terminal):
    q.put_many(range(3))
    holders = [Holder(4711, "worker 1", "'cat.png'", 2, 5.0), Holder(4712, "worker 2", None, 0, 0.0)]
    with open_display(terminal) as display:
        display.show(view_of(q, done=1, rate=12.0, left=3.0, holders=holders))
    shown = "\n".join(terminal.lines())
    assert "q.dq" in shown
    assert "1 done, 0 failed, 0 in flight, 3 waiting, 12/s, 3 s left" in shown
    for word in ("4711", "'cat.png'", "5 s", "worker 1", "4712", "idle", "worker 2"):
        assert word in shown


def test_a_long_path_is_shown_by_its_end(q, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    with open_display(terminal) as display:
        display.show(view_of(q))
    assert terminal.lines()[0].endswith("/q.dq") and "..." in terminal.lines()[0]


def test_a_display_takes_the_place_of_the_one_before(q, terminal):
    with open_display(terminal) as display:
        display.show(view_of(q, done=1, holders=[Holder(n, "w", "an item", 1, 1.0) for n in range(5)]))
        display.show(view_of(q, done=2))
    shown = "\n".join(terminal.lines())
    assert "2 done" in shown and "1 done" not in shown and "an item" not in shown


def test_what_others_write_stays_above_the_display(q, terminal):
    with open_display(terminal) as display:
        display.show(view_of(q, done=1))
        display.write("12:00:00 worker 3 was replaced [/bold] :smile:\n")
        display.show(view_of(q, done=2))
        display.write("12:00:01 another line\n")
        display.show(view_of(q, done=3))
        display.write("12:00:02 the last word\n")
    lines = terminal.lines()
    assert lines[0] == "12:00:00 worker 3 was replaced [/bold] :smile:"
    assert lines[1:3] == ["12:00:01 another line", "12:00:02 the last word"]
    assert ["3 done" in line for line in lines if "done" in line] == [True], "the last view stays"


def test_when_a_terminal_is_gone_its_display_ends_and_the_log_has_its_stream_back(q, terminal, root_handler):
    handler = root_handler(terminal)
    with open_display(terminal) as display:
        display.show(view_of(q))
        assert handler.stream is display
        terminal.gone = True
    assert handler.stream is terminal


def test_without_a_terminal_a_display_is_silent(q):
    stream = io.StringIO()
    with open_display(stream) as display:
        display.show(view_of(q))
        display.write("a log line\n")
    assert stream.getvalue() == "a log line\n"


def test_without_a_terminal_a_watch_says_a_line_each_time(q):
    stream = io.StringIO()
    with open_display(stream, lines=True) as display:
        display.show(view_of(q, done=1))
        display.show(view_of(q, done=2))
    first, second = stream.getvalue().splitlines()
    assert "1 done" in first and "2 done" in second


def test_watch_shows_a_queue_from_another_process_until_it_is_interrupted(q, start, path):
    q.put_many(range(3))
    code = """
    from durableq._progress import watch
    say("watching")
    try:
        watch(DurableQueue(path), interval=0.01)
    except KeyboardInterrupt:
        say("interrupted")
    """
    child = start(code, path)
    child.expect("watching")
    assert "0 done, 0 failed, 0 in flight, 3 waiting" in child.hear()
    q.reserve(timeout=0).ack()
    until(lambda: "1 done" in child.hear())
    child.process.send_signal(2)
    until(lambda: child.hear() == "interrupted")
    child.finish()
    assert os.path.exists(path)
