"""Checks out N times in a row against a running stack: how long each answer took, and whether every order ended.

Run it with the stack that `./sagapost up --detach` started: .venv/bin/python benchmarks/checkouts.py 200
"""

import argparse
import collections
import http.client
import json
import statistics
import time
from typing import Any


def main() -> int:
    """Print the answers' milliseconds and the states in which the sagas ended; 1 when one did not end in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=200)
    parser.add_argument("--port", type=int, default=9000, help="the gateway's port on 127.0.0.1")
    parser.add_argument("--payment-method", default="pm_card_ok")
    parser.add_argument("--deadline-s", type=float, default=180)
    given = parser.parse_args()
    connection = http.client.HTTPConnection("127.0.0.1", given.port, timeout=30)
    sagas: list[str] = []
    answers_ms: list[float] = []
    for number in range(given.count):
        started = time.perf_counter()
        status, answer = _call(connection, "POST", "/api/checkout", _cart(number, given.payment_method))
        answers_ms.append((time.perf_counter() - started) * 1000)
        if status != 202:
            print(f"checkout {number} answered {status}: {answer}")
            return 1
        sagas.append(answer["saga_id"])
    cuts = statistics.quantiles(answers_ms, n=100)
    print(f"{given.count} checkouts: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, slowest {max(answers_ms):.1f} ms")
    return _watch(connection, sagas, given.deadline_s)


def _watch(connection: http.client.HTTPConnection, sagas: list[str], deadline_s: float) -> int:
    started, ended = time.monotonic(), collections.Counter[str]()
    left = list(sagas)
    while left and time.monotonic() - started < deadline_s:
        found = {saga: _call(connection, "GET", f"/api/sagas/{saga}")[1] for saga in left}
        ended.update(saga["state"] for saga in found.values() if saga["done"])
        left = [name for name, saga in found.items() if not saga["done"]]
        time.sleep(0.2)
    print(f"ended: {dict(ended)}, not ended: {len(left)}, the last {time.monotonic() - started:.1f} s after the last answer")
    return 1 if left else 0


def _call(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"} if body else {})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def _cart(number: int, payment_method: str) -> dict[str, object]:
    items = [{"product_id": 1, "quantity": 1, "price": "1299.99"}]
    return {"user_id": 1, "user_email": f"customer-{number}@example.com", "items": items, "payment_method": payment_method}


if __name__ == "__main__":
    raise SystemExit(main())
