"""Real engines for the tests: started on private loopback ports with their data in a folder of the test's, killed by pid.

    leash         starts a server so that it cannot outlive the tests, however they end
    redis_server  a Redis server
    rabbitmq      a RabbitMQ broker with an Erlang world of its own
    kafka_mock    librdkafka's mock cluster, which speaks the real protocol, in a process of its own
    proxy         a network in between, to cut, refuse, stall and slow down
    targets       the three as `forward` sees them; subjects: as `connect` does
    forwarder     `forward` in a thread

`python -m tests.engines --seconds 60` brings faults over them at random.

What is not installed skips the tests that need it, with a line that says what to install.
"""
