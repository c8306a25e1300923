"""The Celery app of the tests. Its broker is the directory in $BROKER; it has no result server either."""

from __future__ import annotations

import os
import time

from celery import Celery, signals

import durableq.integrations.kombu  # noqa: F401

app = Celery("celery_app", broker=f"durableq://{os.environ['BROKER']}", backend="rpc://")
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"sync": None, "max_deliveries": 3},
    worker_prefetch_multiplier=1,
    worker_redirect_stdouts=False,
    worker_hijack_root_logger=False,
)


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # in one piece, whichever process of the pool it is


@signals.worker_ready.connect
def ready(**_):
    say("ready")


@app.task
def add(x, y):
    return x + y


@app.task(bind=True, acks_late=True)
def hold(self, name, until=None):
    """Say that it began, and end when there is a file of that name."""
    say("holds", name, "again" if self.request.delivery_info["redelivered"] else "first")
    while until and not os.path.exists(until):
        time.sleep(0.01)
    return name


@app.task(bind=True, acks_late=True)
def die(self):
    say("dies")
    os.kill(os.getpid(), 9)
