"""Deadlines are rows: the process that would have applied them may die, and others apply each of them once."""

import concurrent.futures
import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
import pytest

from sagapost_sandbox import ports
from sagapost_sandbox.testing import services

SAGAS: Final = 100
WINDOW_S: Final = 12
Start = Callable[[str, Mapping[str, str]], services.Service]
CART: Final = json.dumps({"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]})
# the deadline that a row was about: a third of the window, then the end of it
FIRED: Final = """
SELECT h.saga_id::text, h.reason, h.at, CASE h.reason WHEN 'nudge' THEN s.created_at + %s ELSE s.pay_before END
  FROM saga_history AS h JOIN sagas AS s ON s.id = h.saga_id WHERE h.source = 'deadline' AND h.reason IN ('nudge', 'pay')
"""


def checkout(service: services.Service, key: str | None = None) -> int:
    """Buy one laptop from the order service itself."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.request("POST", "/checkout", CART, {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {}))
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def fired(dsn: str) -> list[tuple[str, str, datetime, datetime]]:
    """Give saga, kind, when and when it should have been, of every deadline that was applied."""
    with psycopg.connect(dsn) as conn:
        return conn.execute(FIRED, (timedelta(seconds=WINDOW_S / 3),)).fetchall()


def test_each_deadline_fires_once_although_its_process_died(
    order_db: str,
    vhost: str,
    start_service: Start,
    eventually: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    """A hundred unpaid orders wait, their process is killed with -9, two replicas come up: each deadline is applied once, none early."""
    env = {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": vhost, "SAGAPOST_PAY_WINDOW_S": str(WINDOW_S)}
    start_service("relay", env).wait_ready()  # a deadline waits for a message that has not left
    doomed = start_service("order", env).wait_ready()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(checkout, [doomed] * SAGAS)) == {202}
    doomed.kill()

    replicas = [start_service("order", {**env, "SAGAPOST_PORT": str(port)}) for port in ports.trial(2)]
    for replica in replicas:
        replica.wait_ready()
    ready_at = time.time()
    eventually(lambda: len(fired(order_db)) >= 2 * SAGAS, WINDOW_S + 30)

    found = fired(order_db)
    assert Counter(Counter((saga_id, kind) for saga_id, kind, _, _ in found).values()) == {1: 2 * SAGAS}
    lateness_s = sorted(at.timestamp() - max(due.timestamp(), ready_at) for _, _, at, due in found if at.timestamp() > ready_at)
    assert all(at >= due for _, _, at, due in found)
    if lateness_s:
        record_property("lateness_p50_s", lateness_s[len(lateness_s) // 2])
        record_property("lateness_p99_s", lateness_s[int(len(lateness_s) * 0.99)])


def test_while_an_old_order_is_unpaid_new_ones_are_asked_for_later(
    order_db: str, vhost: str, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """With a key or without: while payments are late new orders are asked for after two thirds of the time to pay, later after one."""
    env = {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": vhost, "SAGAPOST_PAY_WINDOW_S": "900"}
    service = start_service("order", env).wait_ready()
    with psycopg.connect(order_db, autocommit=True) as conn:

        def wait_s(oldest_s: int, key: str | None = None) -> float:
            conn.execute("UPDATE sagas SET created_at = now() - %s * interval '1 second'", (oldest_s,))
            assert checkout(service, key) == 202
            newest = conn.execute("SELECT deadline_at - created_at FROM sagas ORDER BY order_id DESC LIMIT 1").fetchone()
            return newest[0].total_seconds() if newest else 0

        assert wait_s(0) == 300
        eventually(lambda: wait_s(60) == 600, 30)
        assert wait_s(60, "a-key") == 600
        eventually(lambda: wait_s(0) == 300, 30)


@pytest.mark.parametrize("crash", ["sweeper.after_commit", "sweeper.after_commit:5"])
def test_a_sweeper_that_dies_after_its_commit_repeats_nothing(
    crash: str, order_db: str, vhost: str, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """Kill -9 right behind a deadline's commit: started again, the others follow, and that one is not applied twice."""
    env = {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": vhost, "SAGAPOST_PAY_WINDOW_S": "9"}
    start_service("relay", env).wait_ready()
    doomed = start_service("order", env | {"SAGAPOST_CRASH": crash}).wait_ready()
    for _ in range(10):
        checkout(doomed)
    assert doomed.wait() == -9
    with psycopg.connect(order_db) as conn:
        placed = conn.execute("SELECT count(*) FROM sagas").fetchone()

    start_service("order", env).wait_ready()

    with psycopg.connect(order_db, autocommit=True) as conn:
        all_compensate = "SELECT count(*) = %s FROM sagas WHERE state = 'compensating'"
        eventually(lambda: (conn.execute(all_compensate, placed).fetchone() or (False,))[0], 30)
        twice = "SELECT saga_id FROM saga_history WHERE reason IN ('nudge', 'pay') GROUP BY saga_id, reason HAVING count(*) > 1"
        assert conn.execute(twice).fetchall() == []
