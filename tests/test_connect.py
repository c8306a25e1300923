"""`durableq.connect`: URLs and options, engines that are away or come back, and what is particular to one of them."""

from __future__ import annotations

import re
import sys
import threading
import time

import pytest
from processes import PATIENCE, until

import durableq
from durableq import BadURLError, DurableQueue, Empty, MissingExtraError, UnreachableError, UnsupportedError
from durableq.integrations.engines import queue as engine_queue


@pytest.fixture
def redis_server(make_redis):
    return make_redis()


@pytest.fixture
def redis_url(redis_server):
    return f"redis://127.0.0.1:{redis_server.port}/0/jobs"


@pytest.fixture
def opened():
    """`opened(url)` is a queue that is closed after the test."""
    queues = []

    def connect(url, **options):
        queues.append(durableq.connect(url, **options))
        return queues[-1]

    yield connect
    for queue in queues:
        queue.close()


# -- URLs and options --------------------------------------------------------------------------------------------------


def test_a_file_url_gives_the_queue_in_that_file(path, opened):
    jobs = opened(f"file://{path}", maxsize=3, sync=0, serializer="json")
    assert isinstance(jobs, DurableQueue)
    assert (jobs.path, jobs.maxsize) == (str(path), 3)


def test_a_file_url_may_have_escapes(tmp_path, opened):
    assert opened(f"file://{tmp_path}/a%20b.dq").path == f"{tmp_path}/a b.dq"


@pytest.mark.parametrize(
    "url, complaint",
    [
        ("jobs.dq", "is no URL; for a file"),
        ("file://jobs.dq", "three slashes"),
        ("carrier-pigeon://roof?queue=a", "kombu has no transport"),
        ("redis://localhost/0", "name a stream or a list"),
        ("redis://localhost/0?list=jobs", "a list has no place for what is lent"),
        ("redis://localhost/0/jobs?silence=long", "could not convert"),
        ("amqp://localhost", "name the queue"),
        ("memory://", "name the queue"),
    ],
)
def test_a_url_that_makes_no_sense_is_told(url, complaint):
    with pytest.raises(BadURLError, match=re.escape(complaint)):
        durableq.connect(url)


@pytest.mark.parametrize("option", [{"sync": 0}, {"max_bytes": 1}, {"on_full": "block"}, {"mode": 0o644}])
@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0/jobs", "amqp://127.0.0.1:1/?queue=jobs"])
def test_an_option_that_is_for_files_is_refused(url, option):
    with pytest.raises(UnsupportedError, match=next(iter(option))):
        durableq.connect(url, **option)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0/jobs", "amqp://127.0.0.1:1/?queue=jobs"])
def test_an_unknown_option_is_a_type_error(url):
    with pytest.raises(TypeError):
        durableq.connect(url, colour="red")


@pytest.mark.parametrize("option", [{"lease": -1}, {"lease": 0}, {"max_deliveries": 0}], ids=str)
def test_numbers_that_make_no_sense_are_refused_by_their_names(redis_url, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* must be None or positive"):
        durableq.connect(redis_url, **option)


def test_kafka_is_told_to_be_no_queue():
    with pytest.raises(UnsupportedError, match=r"durableq\.forward sends to it"):
        durableq.connect("kafka://127.0.0.1:1/jobs")


def test_a_queue_tells_its_url_and_its_options(redis_url, opened):
    opened(redis_url, lease=60, max_deliveries=3)
    adopted = opened(redis_url)
    assert (adopted.url, adopted.lease, adopted.max_deliveries) == (f"{redis_url.removesuffix('/jobs')} stream jobs", 60, 3)
    with pytest.raises(UnsupportedError, match="url names this queue"):
        _ = adopted.path


@pytest.mark.parametrize("call", ["stats", "sync", "compact", "shutdown"])
def test_what_only_a_file_can_do_is_refused(redis_url, opened, call):
    with pytest.raises(UnsupportedError, match=r"redis://127.0.0.1"):
        getattr(opened(redis_url), call)()


@pytest.mark.parametrize(
    "url, module, extra",
    [("redis://localhost/0/a", "redis", "redis"), ("amqp://localhost/?queue=a", "kombu", "kombu")],
)
def test_a_library_that_is_missing_is_told_with_its_pip_command(monkeypatch, url, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=re.escape(f"python -m pip install 'durableq[{extra}]'")):
        durableq.connect(url)


def test_a_password_is_not_shown(make_redis, opened):
    server = make_redis()
    with server.client() as client:
        client.config_set("requirepass", "secret")
    jobs = opened(f"redis://:secret@127.0.0.1:{server.port}/0/jobs")
    jobs.put("a")
    assert "secret" not in repr(jobs) + jobs.url
    assert "jobs" in jobs.url
    with pytest.raises(UnreachableError) as caught:
        durableq.connect(f"redis://:wrong@127.0.0.1:{server.port}/0/jobs")
    assert "wrong@" not in str(caught.value)


# -- engines that are away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0/jobs", "amqp://127.0.0.1:1/?queue=jobs"])
def test_an_engine_that_is_not_there_is_told(url):
    with pytest.raises(UnreachableError, match=r"127.0.0.1:1"):
        durableq.connect(url)
    assert issubclass(UnreachableError, ConnectionError)


def test_a_redis_that_goes_away_is_told_and_the_handle_goes_on_when_it_is_back(redis_server, redis_url, opened):
    jobs = opened(redis_url)
    jobs.put_many("abc")
    held = jobs.reserve()
    redis_server.kill()
    for call in (jobs.get, jobs.qsize, held.ack, lambda: jobs.put("d")):
        with pytest.raises(UnreachableError):
            call()
    redis_server.start()
    held.ack()
    assert [jobs.get(), jobs.get()] == ["b", "c"]


def test_a_redis_that_comes_back_empty_handed_is_a_new_queue(redis_server, redis_url, opened):
    jobs = opened(redis_url, maxsize=2)
    jobs.put("a")
    held = jobs.reserve()
    redis_server.kill()
    redis_server.wipe()
    redis_server.start()
    with pytest.raises(Empty):
        jobs.get(timeout=0)
    with pytest.raises(durableq.StaleDeliveryError):
        held.ack()
    jobs.put_many("bc")
    assert jobs.full()
    assert jobs.get() == "b"


def test_a_stream_deleted_under_a_waiting_get_is_made_anew(redis_server, redis_url, opened, start):
    opened(redis_url)
    child = start("q = durableq.connect(path); say('open'); say(q.get())", redis_url)
    child.expect("open")
    with redis_server.client() as client:
        until(lambda: any(one["cmd"] in ("xreadgroup", "evalsha") for one in client.client_list()))
        client.delete("jobs")
    opened(redis_url).put("a")
    child.expect("a")


def test_a_waiting_get_wakes_up_when_a_delayed_item_is_due(redis_url, opened, monkeypatch):
    jobs = opened(redis_url)
    jobs.put("late", delay=0.3)
    monkeypatch.setattr(engine_queue, "_SLICE", PATIENCE)  # or it would come back in any case, soon
    assert jobs.get(timeout=PATIENCE / 2) == "late"


def test_a_get_that_was_asleep_counts_what_was_delivered_before_a_delay(redis_server, redis_url, opened):
    sleeper, other = opened(redis_url), opened(redis_url)
    sleeper.put_many("ab")
    for delivery in sleeper.reserve_many(2):
        delivery.nack(delay=0.01)
    with redis_server.client() as client:
        until(lambda: client.zcount("jobs:delayed", 0, time.time() * 1000) == 2)
    other.reserve(timeout=PATIENCE)  # which brings both back
    (woken_by,) = sleeper._store._wait_and_read(1, False, PATIENCE)
    assert sleeper._store._fetched(*woken_by).deliveries == 2


def test_a_broker_that_was_restarted_gives_back_what_was_lent_and_the_handle_goes_on(rabbitmq, opened):
    jobs = opened(f"{rabbitmq.url}?queue=restarted")
    jobs.put_many("ab")
    held = jobs.reserve()
    rabbitmq.stop()
    with pytest.raises(UnreachableError):
        jobs.get(timeout=0)
    rabbitmq.start()
    with pytest.raises(durableq.StaleDeliveryError):
        held.ack()
    assert {jobs.get(timeout=PATIENCE), jobs.get(timeout=PATIENCE)} == {"a", "b"}


def test_closing_in_the_middle_of_a_sign_of_life_takes_the_connection_away_in_silence(redis_url, opened):
    jobs = opened(redis_url)
    engine = jobs._store
    begun, ended = threading.Event(), []

    def beat():
        begun.set()
        engine._ended.wait(PATIENCE)
        ended.append(engine)
        raise AttributeError("as the client has it when its connection is closed while it reads")

    engine._beat, engine.beat = beat, 0.01
    jobs.put("a")
    jobs.reserve()
    assert begun.wait(PATIENCE)
    beater = engine._beater
    jobs.close()
    beater.join(PATIENCE)  # an exception in it fails this test
    assert ended and not beater.is_alive()


def test_a_put_on_a_connection_that_was_dropped_while_idle_just_connects_again(rabbitmq, proxy, opened):
    between = proxy(rabbitmq.port)
    jobs = opened(f"amqp://guest:guest@127.0.0.1:{between.port}//?queue=idle")
    jobs.put("a")
    between.cut()
    jobs.put("b")
    assert opened(f"{rabbitmq.url}?queue=idle").get_many(5) == ["a", "b"]


def test_an_item_that_the_broker_does_not_take_raises_value_error_and_the_queue_goes_on(rabbitmq, opened):
    jobs = opened(f"{rabbitmq.url}?queue=small", serializer="bytes")
    with pytest.raises(ValueError, match="does not take"):
        jobs.put(b"x" * 1_000_001)
    jobs.put(b"x")
    assert jobs.get(timeout=PATIENCE) == b"x"


# -- together with forward ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["redis", "rabbitmq"])
def test_what_was_forwarded_can_be_taken_with_the_same_ids(q, opened, request, engine):
    if engine == "redis":
        url = request.getfixturevalue("redis_url")
    else:
        url = f"{request.getfixturevalue('rabbitmq').url}?queue=forwarded"
    q.put_many([{"n": 1}, {"n": 2}])
    names = [one.id for one in q.peek_deliveries(2)]
    durableq.forward(q, url, drain=True, key="n", headers=lambda item: {"kind": item["n"]})
    jobs = opened(url, serializer="json")
    for n, name in enumerate(names, 1):
        with jobs.reserve(timeout=PATIENCE) as delivery:
            assert (delivery.item, delivery.id, delivery.headers) == ({"n": n}, name, {"kind": str(n)})


# -- particular to Redis -----------------------------------------------------------------------------------------------


def test_nothing_is_left_in_redis_of_what_is_done(redis_server, redis_url, opened):
    jobs = opened(redis_url)
    jobs.put_many(range(50))
    for _ in range(50):
        jobs.get()
        jobs.task_done()
    with redis_server.client() as client:
        assert client.xlen("jobs") == 0
        assert client.xpending("jobs", "durableq")["pending"] == 0


def test_a_closed_handle_leaves_no_consumer_behind(redis_server, redis_url):
    durableq.connect(redis_url).close()
    with redis_server.client() as client:
        assert [one["name"] for one in client.xinfo_consumers("jobs", "durableq")] in ([], [b"-"])


def test_a_wrong_kind_of_key_is_told(redis_server, redis_url):
    with redis_server.client() as client:
        client.set("jobs", "x")
    with pytest.raises(UnreachableError, match="WRONGTYPE"):
        durableq.connect(redis_url).put("a")


def test_entries_deleted_by_hand_are_passed_over(redis_server, redis_url, opened):
    jobs = opened(redis_url)
    jobs.put_many("abc")
    first, second = jobs.reserve_many(2)
    first.nack()
    second.nack()
    with redis_server.client() as client:
        client.xdel("jobs", client.xrange("jobs")[0][0])
    assert [jobs.get(timeout=PATIENCE), jobs.get(timeout=PATIENCE)] == ["b", "c"]
    assert jobs.empty()


# -- other transports of kombu -----------------------------------------------------------------------------------------


def test_any_transport_of_kombu_will_do(opened):
    jobs = opened("memory://?queue=jobs")
    jobs.put_many(["a", {"b": 1}])
    with jobs.reserve() as delivery:
        assert (delivery.item, delivery.deliveries) == ("a", 1)
    jobs.reserve().nack()
    again = jobs.reserve()
    assert again.item == {"b": 1}
    again.reject()
    assert jobs.dead_letters.get() == {"b": 1}


def test_kombu_s_own_transport_for_redis_has_a_name_of_its_own(redis_server, opened):
    jobs = opened(f"kombu+redis://127.0.0.1:{redis_server.port}/0?queue=jobs")
    jobs.put("a")
    assert jobs.get(timeout=PATIENCE) == "a"
    jobs.task_done()
    assert jobs.empty()


def test_a_transport_is_given_its_options(opened, tmp_path):
    (tmp_path / "messages").mkdir()
    folders = {name: str(tmp_path / "messages") for name in ("data_folder_in", "data_folder_out")}
    jobs = opened("filesystem://?queue=jobs", transport_options={**folders, "control_folder": str(tmp_path / "control")})
    jobs.put("a")
    assert len(list((tmp_path / "messages").iterdir())) == 1
    assert jobs.get(timeout=PATIENCE) == "a"
