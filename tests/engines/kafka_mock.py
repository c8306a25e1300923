"""librdkafka's mock cluster in a process of its own: `python kafka_mock.py` serves it and obeys lines on stdin.

It is the library's own test double for brokers: real connections, the real protocol, a log for each partition in memory.
Its C functions are in the library that confluent-kafka brings along.
"""

from __future__ import annotations

import ctypes
import glob
import os
import subprocess
import sys
from collections.abc import Iterator

TOO_LARGE, UNKNOWN_TOPIC = 10, 3
PRODUCE = 0


class KafkaCluster:
    """One broker, one partition to a topic; `port` is where it listens."""

    def __init__(self, advertise: int | None = None) -> None:
        import pytest  # not at the top: this file is a program as well

        pytest.importorskip("confluent_kafka", reason="install it: python -m pip install 'durableq[kafka]'")
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip().isdigit():
            self.kill()
            pytest.skip("this librdkafka has no mock cluster; install the wheel: python -m pip install -U confluent-kafka")
        self.port = int(line)
        if advertise is not None:
            self.tell("advertise", advertise)

    def tell(self, *words: object) -> None:
        """`down`, `up`, `advertise PORT`, `topic NAME`, `topic_error NAME CODE`, `errors API CODE...`: see `_serve`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "done\n"

    def kill(self) -> None:
        """SIGKILL; what it held is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def messages(self, topic: str) -> list[object]:
        """What the topic holds, as a consumer of its own sees it."""
        from confluent_kafka import Consumer, TopicPartition

        servers = {"bootstrap.servers": f"127.0.0.1:{self.port}", "group.id": "tests"}
        consumer = Consumer({**servers, "enable.partition.eof": True, "enable.auto.commit": False, "fetch.wait.max.ms": 10})
        try:
            consumer.assign([TopicPartition(topic, 0, 0)])
            return list(_until_the_end(consumer))
        finally:
            consumer.close()


def _until_the_end(consumer: object) -> Iterator[object]:
    from confluent_kafka import KafkaError

    while True:
        message = consumer.poll(20.0)
        assert message is not None, "the mock cluster does not answer"
        if message.error() is None:
            yield message
        elif message.error().code() == KafkaError._PARTITION_EOF:
            return


def _serve() -> None:
    import confluent_kafka

    place = os.path.join(os.path.dirname(confluent_kafka.__file__), "..", "confluent_kafka.libs", "librdkafka*.so*")
    library = ctypes.CDLL(glob.glob(place)[0])

    def function(name: str, result: object, *arguments: object):
        found = getattr(library, f"rd_kafka_{name}")
        found.restype, found.argtypes = result, list(arguments)
        return found

    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    complaint = ctypes.create_string_buffer(512)
    new = function("new", pointer, number, pointer, text, ctypes.c_size_t)
    kafka = new(0, function("conf_new", pointer)(), complaint, len(complaint))
    cluster = function("mock_cluster_new", pointer, pointer, number)(kafka, 1)
    bootstraps = function("mock_cluster_bootstraps", text, pointer)(cluster).decode()
    print(bootstraps.rpartition(":")[2], flush=True)
    down, up = (function(f"mock_broker_set_{way}", number, pointer, number) for way in ("down", "up"))
    advertise = function("mock_broker_set_host_port", None, pointer, number, text, number)
    topic = function("mock_topic_create", number, pointer, text, number, number)
    topic_error = function("mock_topic_set_error", None, pointer, text, number)
    errors = function("mock_push_request_errors_array", None, pointer, ctypes.c_int16, ctypes.c_size_t, pointer)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "down":
            down(cluster, 1)
        elif word == "up":
            up(cluster, 1)
        elif word == "advertise":
            advertise(cluster, 1, b"127.0.0.1", int(rest[0]))
        elif word == "topic":
            topic(cluster, rest[0].encode(), 1, 1)
        elif word == "topic_error":
            topic_error(cluster, rest[0].encode(), int(rest[1]))
        elif word == "errors":
            api, *codes = map(int, rest)
            errors(cluster, api, len(codes), (ctypes.c_int * len(codes))(*codes))
        print("done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    _serve()
