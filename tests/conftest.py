"""What every test starts from: a path of its own, handles that are closed and processes that are ended after it."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pool_jobs
import psutil
import pytest
from engines.forwarder import Forwarder
from engines.kafka_mock import KafkaCluster
from engines.leash import MARK
from engines.proxy import Proxy
from engines.rabbitmq import RabbitMQ
from engines.redis_server import RedisServer
from engines.subjects import Subject, numbers
from processes import PATIENCE, Child
from shells import Shell, Terminal

from durableq import DurableQueue, WorkerPool, check
from durableq._handle import Handle

pytest_plugins = ["durableq.pytest_plugin"]

# Whoever starts the tests in the background of a script, or with nohup, hands an ignored signal down to them, and to all that
# they start.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

SPOILING = {"test_bad_input", "test_check", "test_damage", "test_fuzz"}
"""Modules whose tests damage their spool on purpose."""


class Watchdog:
    """Ends the process of a test that goes on to hang after its timeout, in a `close` that waits for the same lock maybe."""

    def __init__(self) -> None:
        self.stderr = os.dup(2)  # now, before each test's own output is caught
        self.timeout = 0.0

    def wind_up(self) -> None:
        if self.timeout:
            faulthandler.dump_traceback_later(2 * self.timeout, file=self.stderr, exit=True)


watchdog = pytest.StashKey[Watchdog]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[watchdog] = Watchdog()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    item.config.stash[watchdog].timeout = settings.timeout or 0.0
    item.config.stash[watchdog].wind_up()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item) -> None:
    node.config.stash[watchdog].wind_up()  # pytest itself has just let it run down


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where the queue of this test lies. After the test the whole spool is checked, unless it is to be bad."""
    where = tmp_path / "q.dq"
    yield where
    if where.is_file() and request.module.__name__ not in SPOILING:
        report = check(where)
        assert report.ok, report


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the broker directory of this test lies. After the test every spool in it is checked."""
    where = tmp_path / "broker"
    yield where
    for spool in where.glob("*.dq"):
        report = check(spool)
        assert report.ok, report


@pytest.fixture
def open_queue(path: Path) -> Iterator[Callable[..., DurableQueue]]:
    """`open_queue(**options)` is `DurableQueue(path, **options)`, closed after the test."""
    handles: list[DurableQueue] = []

    def opener(where: Path | str = path, **options: Any) -> DurableQueue:
        handles.append(DurableQueue(where, **options))
        return handles[-1]

    yield opener
    for handle in handles:
        handle.close()


@pytest.fixture
def q(open_queue: Callable[..., DurableQueue]) -> DurableQueue:
    """A queue with the default options."""
    return open_queue()


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled calls in this process: every call to the system goes through the seam, every step is a byte code."""
    monkeypatch.setattr(Handle, "compiled", False)


@pytest.fixture
def cut_short(in_python: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[DurableQueue], None]:
    """`cut_short(q)`: a get of `q` is interrupted just before it changes an entry of the ledger."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def cut(q: DurableQueue) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(q._store._ledger, "change", interrupt)
            with pytest.raises(KeyboardInterrupt):
                q.get_nowait()

    return cut


@pytest.fixture
def pool(path: Path) -> Callable[..., WorkerPool]:
    """`pool(function, processes, **options)` is a WorkerPool at `path`: by default of one worker, that tries again at once."""

    def maker(function: Callable[[Any], Any] = pool_jobs.work, processes: int = 1, **options: Any) -> WorkerPool:
        return WorkerPool(path, function, processes, **{"backoff": pool_jobs.AT_ONCE, **options})

    return maker


@pytest.fixture
def start(path: Path) -> Iterator[Callable[..., Child]]:
    """`start(code, *args)` runs code in a process of its own, which ends before the spool at `path` is checked."""
    children: list[Child] = []

    def starter(code: str, *args: object, **options: Any) -> Child:
        children.append(Child(code, *args, **options))
        return children[-1]

    yield starter
    for child in children:
        child.dispose()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a directory of its own. After the test every queue in it is checked."""
    folder = tmp_path / "shell"
    folder.mkdir()
    shell = Shell(folder)
    yield shell
    shell.dispose()
    for spool in folder.glob("*.dq"):
        report = check(spool)
        assert report.ok, report


@pytest.fixture
def terminal(shell: Shell) -> Iterator[Callable[..., Terminal]]:
    """`terminal(command)` runs a command on a pseudo-terminal."""
    terminals: list[Terminal] = []

    def starter(command: str, **options: Any) -> Terminal:
        terminals.append(Terminal(shell, command, **options))
        return terminals[-1]

    yield starter
    for one in terminals:
        one.dispose()


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """Kill what a failed test left running: a forgotten consumer would eat another test's time, if not its items."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before and not _serves_all_tests(p)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=PATIENCE)


def _serves_all_tests(process: psutil.Process) -> bool:
    try:
        command = " ".join(process.cmdline())
        # The fork server and the resource tracker live as long as the test run by design.
        if "multiprocessing.forkserver" in command or "multiprocessing.resource_tracker" in command:
            return True
        return MARK in process.environ() or "engines/leash.py" in command
    except psutil.Error:
        return False


@pytest.fixture
def punches_holes(tmp_path: Path) -> None:
    """Skip the test where the file system cannot give back the middle of a file."""
    allocate = ctypes.CDLL(None, use_errno=True).fallocate
    allocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    probe = tmp_path / "probe"
    probe.write_bytes(b"x" * 65536)
    with open(probe, "r+b") as file:
        if allocate(file.fileno(), 0x01 | 0x02, 0, 65536):  # KEEP_SIZE | PUNCH_HOLE
            pytest.skip("this file system cannot punch holes")
    probe.unlink()


# -- engines -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """`make_redis(*options)` is a Redis server of the test's own."""
    servers: list[RedisServer] = []

    def make(*options: str) -> RedisServer:
        servers.append(RedisServer(tmp_path / f"redis{len(servers)}", *options))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def one_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """The broker of all tests of this process, not necessarily running."""
    broker = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    yield broker
    broker.dispose()


@pytest.fixture
def rabbitmq(one_rabbitmq: RabbitMQ) -> RabbitMQ:
    """A running RabbitMQ; it takes seconds to start, so tests share it and use queues of their own."""
    if not one_rabbitmq.running:
        one_rabbitmq.start()
    return one_rabbitmq


@pytest.fixture
def kafka() -> Iterator[KafkaCluster]:
    """A Kafka cluster of the test's own, with one broker."""
    cluster = KafkaCluster()
    yield cluster
    cluster.kill()


@pytest.fixture
def proxy() -> Iterator[Callable[[int], Proxy]]:
    """`proxy(port)` is a network in front of a port."""
    proxies: list[Proxy] = []

    def make(port: int) -> Proxy:
        proxies.append(Proxy(port))
        return proxies[-1]

    yield make
    for one in proxies:
        one.close()


@pytest.fixture(params=["file", "redis", "rabbitmq"])
def subject(
    request: pytest.FixtureRequest, path: Path, make_redis: Callable[..., RedisServer]
) -> Iterator[Subject]:
    """A queue of each kind, of the test's own."""
    if request.param == "file":
        found = Subject("file", f"file://{path}")
    elif request.param == "redis":
        found = Subject("redis", f"redis://127.0.0.1:{make_redis().port}/0/jobs?silence=1", "shutdown", "foreign task_done")
    else:
        url = f"{request.getfixturevalue('rabbitmq').url}?queue=jobs{next(numbers)}"
        limits = ("join", "maxsize", "delay", "max_deliveries", "lease", "peek", "shutdown", "foreign task_done", "counts")
        found = Subject("rabbitmq", url, *limits)
    yield found
    found.dispose()


@pytest.fixture
def jobs(subject: Subject) -> Any:
    """A handle of it with the default options."""
    return subject.open()


@pytest.fixture
def forwarder(path: Path) -> Iterator[Callable[..., Forwarder]]:
    """`forwarder(url)` forwards the queue of the test in the background, until it is told to finish."""
    running: list[Forwarder] = []

    def start(sink: str, **options: Any) -> Forwarder:
        running.append(Forwarder(path, sink, **options))
        return running[-1]

    yield start
    for one in running:
        one.finish()
