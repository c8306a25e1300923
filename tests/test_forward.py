"""Store and forward, over every engine: what arrives, in which order, and what engine, network and forwarder may do."""

from __future__ import annotations

import sys

import pool_jobs
import pytest
from engines.targets import KafkaTarget, RabbitTarget, RedisTarget
from processes import until

import durableq
from durableq import ReservedNameError, failures
from durableq.integrations.sinks.base import Sink


@pytest.fixture(params=["kafka", "redis", "rabbitmq"])
def target(request, tmp_path, proxy):
    """An engine behind a proxy."""
    if request.param == "kafka":
        found = KafkaTarget(proxy(0))
    elif request.param == "redis":
        server = request.getfixturevalue("make_redis")(*RedisTarget.options)
        found = RedisTarget(server, proxy(server.port))
    else:
        broker = request.getfixturevalue("rabbitmq")
        found = RabbitTarget(broker, proxy(broker.port))
    yield found
    found.dispose()


def first_of_each(arrived):
    """The messages without their repeats."""
    seen = {}
    for one in arrived:
        assert seen.setdefault(one.id, one).value == one.value, "one id for two items"
    return list(seen.values())


def values(arrived):
    return [one.value for one in first_of_each(arrived)]


def fill(q, count, size=1000):
    items = [f"{n:06}".encode().ljust(size, b".") for n in range(count)]
    q.put_many(items)
    return items


# -- what arrives ------------------------------------------------------------------------------------------------------


def test_items_arrive_in_their_order_and_are_done(q, target):
    items = fill(q, 1200, size=20)
    assert durableq.forward(q, target.url, drain=True) == (1200, 0)
    assert [one.value for one in target.arrived()] == items
    assert q.stats().unfinished == 0


def test_a_message_carries_the_id_of_its_delivery(q, target):
    q.put_many([b"a", b"b"])
    ids = [one.id for one in q.peek_deliveries(2)]
    durableq.forward(q, target.url, drain=True)
    assert [one.id for one in target.arrived()] == ids


def test_text_and_structures_arrive_as_utf_8_and_json(q, target):
    q.put_many(["größe", {"n": 1}, [None, 2.5], b"\x00\xff"])
    durableq.forward(q, target.url, drain=True)
    assert [one.value for one in target.arrived()] == ["größe".encode(), b'{"n":1}', b"[null,2.5]", b"\x00\xff"]


def test_value_key_and_headers_come_from_fields_of_the_item(q, target):
    q.put({"user": "ada", "kind": "login", "text": "hello"})
    durableq.forward(q, target.url, drain=True, value="text", key="user", headers=["kind"])
    (one,) = target.arrived()
    assert (one.value, one.key, one.headers) == (b"hello", b"ada", {"kind": b"login"})


def test_value_key_and_headers_come_from_functions_of_the_item(q, target):
    q.put(7)
    durableq.forward(
        q, target.url, drain=True, value=lambda n: {"double": 2 * n}, key=lambda n: f"k{n}", headers=lambda n: {"h": n}
    )
    (one,) = target.arrived()
    assert (one.value, one.key, one.headers) == (b'{"double":14}', b"k7", {"h": b"7"})


def test_what_travels_with_an_item_goes_along_as_headers(q, target):
    q._carry(lambda: {"traceparent": "00-1-2-03"})
    q.put_many([b"a", {"user": "ada"}])
    durableq.forward(q, target.url, drain=True)
    assert [one.headers for one in target.arrived()] == [{"traceparent": b"00-1-2-03"}] * 2


def test_a_header_under_a_name_of_durableq_s_own_is_refused_before_anything_is_taken(q, target):
    q.put(dict.fromkeys(target.reserved, "x"))
    for name in target.reserved:
        for headers in ([name], {name: name}):
            with pytest.raises(ReservedNameError, match=f"header '{name}': .* send it under another one .*NAME=FIELD"):
                durableq.forward(q, target.url, drain=True, headers=headers)
    assert [one.deliveries for one in q.peek_deliveries(2)] == [0]
    durableq.forward(q, target.url, drain=True, headers={f"its-{name}": name for name in target.reserved})
    (one,) = target.arrived()
    assert one.headers == {f"its-{name}": b"x" for name in target.reserved}


def test_a_function_s_header_under_a_name_of_durableq_s_own_makes_its_item_a_dead_letter(q, target):
    q.put_many(["fine", *target.reserved, "fine too"])
    assert durableq.forward(q, target.url, drain=True, headers=lambda name: {name: "x"}) == (2, len(target.reserved))
    assert [one.headers for one in target.arrived()] == [{"fine": b"x"}, {"fine too": b"x"}]
    assert q.dead_letters.peek(10) == list(target.reserved)
    assert all("under another one" in story.reason for story in failures.read(q).values())


def test_names_that_are_no_text_are_made_text_and_what_cannot_be_sent_as_text_is_a_dead_letter(q, target):
    q.put_many([7, "\udc80", 8])
    assert durableq.forward(q, target.url, drain=True, value=lambda item: "x", headers=lambda item: {item: "x"}) == (2, 1)
    assert [one.headers for one in target.arrived()] == [{"7": b"x"}, {"8": b"x"}]
    assert "UnicodeEncodeError" in next(iter(failures.read(q).values())).reason


def test_what_travels_under_a_name_of_durableq_s_own_makes_its_item_a_dead_letter(q, target):
    names = iter(["fine", *target.reserved])
    q._carry(lambda: {next(names): "x"})
    q.put_many(["a"] * (1 + len(target.reserved)))
    assert durableq.forward(q, target.url, drain=True) == (1, len(target.reserved))
    assert [one.headers for one in target.arrived()] == [{"fine": b"x"}]


def test_a_topic_of_its_own_sends_an_item_elsewhere(q, target):
    if isinstance(target, KafkaTarget):
        target.cluster.tell("topic", "other")
    q.put_many([{"to": "other", "n": 1}, {"to": "other", "n": 2}])
    durableq.forward(q, target.url, drain=True, topic="to", value=lambda item: str(item["n"]))
    assert [one.value for one in target.arrived("other")] == [b"1", b"2"]
    assert target.arrived() == []


def test_what_no_message_can_be_made_of_goes_to_the_dead_letters_and_the_rest_goes_on(q, target):
    q.put_many([{"user": "a"}, {"nobody": "b"}, {"user": "c"}])
    assert durableq.forward(q, target.url, drain=True, value="user") == (2, 1)
    assert [one.value for one in target.arrived()] == [b"a", b"c"]
    assert q.dead_letters.peek() == [{"nobody": "b"}]
    assert "no field 'user'" in next(iter(failures.read(q).values())).reason


class Ear(Sink):
    """An engine that takes whatever it is sent."""

    name = "an ear"

    def __init__(self):
        self.heard = []

    def open(self):
        pass

    def send(self, parcel):
        for index, message in enumerate(parcel.messages):
            self.heard.append(message.value)
            parcel.confirm(index)

    def wait(self, parcel, timeout):
        return parcel.settled

    def close(self):
        pass


def test_what_cannot_be_decoded_goes_to_the_dead_letters_with_its_story_and_the_rest_goes_on(q):
    lost = pool_jobs.one_of_a_class_of_this_process()
    q.put_many([b"a", lost, b"b", lost])
    del sys.modules["only_in_this_process"]
    ear = Ear()
    assert durableq.forward(q, ear, drain=True) == (2, 2)
    assert ear.heard == [b"a", b"b"]
    stories = failures.read(q)
    assert len(stories) == 2 and q.dead_letters.ids() == set(stories)
    assert all("No module named 'only_in_this_process'" in story.reason for story in stories.values())


def test_what_ends_it_while_messages_are_made_leaves_the_items_uncounted(q):
    def interrupted(item):
        if item == b"b":
            raise KeyboardInterrupt
        return item

    q.put_many([b"a", b"b", b"c"])
    with pytest.raises(KeyboardInterrupt):
        durableq.forward(q, Ear(), drain=True, value=interrupted)
    assert [(one.item, one.deliveries) for one in q.peek_deliveries(3)] == [(b"a", 0), (b"b", 0), (b"c", 0)]


def test_what_json_has_no_number_for_goes_to_the_dead_letters_and_the_rest_goes_on(q, target):
    q.put_many([{"n": float("nan")}, [float("inf")], -float("inf"), {"n": 1e300}])
    assert durableq.forward(q, target.url, drain=True) == (1, 3)
    assert [one.value for one in target.arrived()] == [b'{"n":1e+300}']
    assert all("not JSON compliant" in story.reason for story in failures.read(q).values())


def test_what_the_engine_refuses_goes_to_the_dead_letters_and_the_rest_goes_on(q, target):
    large = b"x" * (target.largest + 1)
    q.put_many([b"a", b"b", large, b"c", b"d"])
    assert durableq.forward(q, target.url, drain=True) == (4, 1)
    assert values(target.arrived()) == [b"a", b"b", b"c", b"d"]
    assert q.dead_letters.peek() == [large]
    assert "refused" in next(iter(failures.read(q).values())).reason


def test_it_waits_for_items_until_it_is_told_to_stop(q, target, forwarder):
    running = forwarder(target.url)
    for n in range(3):
        q.put(b"%d" % n)
        until(lambda n=n: q.stats().unfinished == 0)
    assert running.finish() == (3, 0)
    assert [one.value for one in target.arrived()] == [b"0", b"1", b"2"]


# -- what the engine and the network may do ----------------------------------------------------------------------------


def test_while_the_engine_is_away_items_stay_and_nothing_is_taken(q, target, forwarder):
    target.proxy.refuse()
    items = fill(q, 50)
    running = forwarder(target.url)
    until(lambda: len(q.stats().owners) == 2 or any(owner.waiting for owner in q.stats().owners))
    assert q.stats().ready == 50
    target.proxy.accept()
    until(lambda: q.stats().unfinished == 0)
    running.finish()
    assert values(target.arrived()) == items


def under_way(target, forwarder, q, count):
    """A forwarder that has `count` items on their way to an engine that takes them and never answers."""
    q.put(b"first")
    running = forwarder(target.url)
    until(lambda: q.stats().unfinished == 0)
    target.proxy.mute()
    items = fill(q, count)
    until(lambda: q.stats().lent == count)
    return running, [b"first", *items]


def half_way(target, forwarder, q, total):
    """A forwarder on a slow line that has sent some of `total` bytes."""
    target.proxy.delay = 0.002
    running = forwarder(target.url)
    until(lambda: target.proxy.passed > total * 0.2 and q.stats().unfinished < q.stats().puts)
    return running


def test_an_engine_killed_in_the_middle_gets_everything_once_it_is_back(q, target, forwarder):
    items = fill(q, 1000)
    running = half_way(target, forwarder, q, 1_000_000)
    target.kill()
    assert q.stats().unfinished > 0
    target.restart()
    target.proxy.delay = 0
    until(lambda: q.stats().unfinished == 0)
    running.finish()
    assert values(target.arrived()) == items


def test_an_engine_that_comes_back_empty_handed_gets_all_that_it_had_not_confirmed(q, target, forwarder):
    items = fill(q, 1000)
    running = half_way(target, forwarder, q, 1_000_000)
    target.proxy.mute()  # so that what it confirms is known: all of that is in `before`
    before = target.arrived()
    assert len(before) > 0
    target.kill()
    assert q.stats().unfinished > 0
    target.restart_empty()
    target.proxy.cut()
    target.proxy.delay = 0
    until(lambda: q.stats().unfinished == 0)
    running.finish()
    assert values([*before, *target.arrived(fresh=True)]) == items


def test_a_connection_cut_half_way_through_a_batch_loses_nothing_and_keeps_the_order(q, target, forwarder):
    items = fill(q, 1000)
    target.proxy.cut_after(100_000)
    running = forwarder(target.url)
    until(lambda: q.stats().unfinished == 0)
    running.finish()
    assert values(target.arrived()) == items


def test_a_connection_cut_again_and_again_loses_nothing_and_keeps_the_order(q, target, forwarder):
    items = fill(q, 1000)
    running = forwarder(target.url, batch=50)
    for _ in range(4):
        target.proxy.cut_after(60_000)
        before = target.proxy.passed
        until(lambda before=before: target.proxy.passed >= before + 60_000 or q.stats().unfinished == 0)
    until(lambda: q.stats().unfinished == 0)
    running.finish()
    assert values(target.arrived()) == items


def test_when_the_answers_are_lost_repeats_have_the_same_id(q, target, forwarder):
    fill(q, 1)
    running = forwarder(target.url)
    until(lambda: q.stats().unfinished == 0)
    target.proxy.mute()
    before = target.proxy.passed
    q.put(b"again")
    until(lambda: target.proxy.passed > before + len(b"again"))
    target.proxy.cut()
    until(lambda: q.stats().unfinished == 0)
    running.finish()
    assert values(target.arrived())[-1] == b"again"


def test_a_slow_engine_gets_everything(q, target):
    items = fill(q, 100)
    target.proxy.delay = 0.01
    assert durableq.forward(q, target.url, drain=True) == (100, 0)
    target.proxy.delay = 0
    assert [one.value for one in target.arrived()] == items


# -- what the forwarder may do -----------------------------------------------------------------------------------------


def test_a_forwarder_that_is_told_to_stop_while_the_engine_is_away_gives_everything_back_uncounted(
    q, target, forwarder, monkeypatch
):
    monkeypatch.setattr("durableq.integrations.forward._GRACE", 0.5)
    running, _ = under_way(target, forwarder, q, 10)
    target.proxy.refuse()
    assert running.finish() == (1, 0)
    assert q.stats().ready == 10
    assert {one.deliveries for one in q.peek_deliveries(10)} == {0}


def test_a_forwarder_killed_in_the_middle_leaves_the_rest_to_the_next(q, target, start, path):
    items = fill(q, 1000)
    target.proxy.delay = 0.002
    child = start("durableq.forward(path, sys.argv[2])", path, target.url)
    until(lambda: 0 < q.stats().unfinished < 900)
    child.kill()
    target.proxy.delay = 0
    assert durableq.forward(q, target.url, drain=True).refused == 0
    assert values(target.arrived()) == items


def test_what_a_lease_would_take_back_is_kept_while_the_engine_is_away(open_queue, target, forwarder, monkeypatch):
    monkeypatch.setattr("durableq.integrations.forward._KEEP", 1.0)
    q = open_queue(lease=0.5)
    running, items = under_way(target, forwarder, q, 10)
    target.proxy.refuse()
    # If nobody kept them, this would take them as soon as the lease is over.
    with pytest.raises(durableq.Empty):
        q.get(timeout=2.0)
    target.proxy.accept()
    until(lambda: q.stats().unfinished == 0)
    assert running.finish() == (11, 0)
    assert values(target.arrived()) == items
