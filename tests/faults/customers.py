"""Customers who buy for as long as a fault lasts, and remember what they were told."""

import concurrent.futures
import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Generator

import msgspec
from faults import stack as stacks

from sagapost_sandbox.testing import polling

CUSTOMERS = 4
PAUSE_S = 0.05


class Bought(msgspec.Struct, frozen=True, kw_only=True):
    """An order that a customer was told of, and when, in seconds of the monotonic clock."""

    order_id: int
    saga_id: str
    at: float


class Customers:
    """Buy as fast as they are answered, each order again with its own key until it is known; `bought` is what they were told."""

    def __init__(self, shop: stacks.Stack) -> None:
        self._shop = shop
        self._over = threading.Event()
        self.bought: list[Bought] = []

    @contextlib.contextmanager
    def buying(self) -> Generator[None]:
        """Let them buy for as long as the block takes, and finish what they began."""
        self._over.clear()
        with concurrent.futures.ThreadPoolExecutor(CUSTOMERS) as pool:
            tasks = [pool.submit(self._buy) for _ in range(CUSTOMERS)]
            try:
                yield
            finally:
                self._over.set()
            for task in tasks:
                task.result()

    def have(self, count: int) -> bool:
        """Tell whether they were told of so many orders."""
        return len(self.bought) >= count

    def _buy(self) -> None:
        while not self._over.is_set():
            key = f'"{uuid.uuid4()}"'
            polling.eventually(functools.partial(self._told, key), 60)
            time.sleep(PAUSE_S)

    def _told(self, key: str) -> bool:
        body = {**stacks.CART, "user_email": "promoted@example.com"}
        status, answer = self._shop.call("POST", "/api/checkout", body, **{"Idempotency-Key": key})
        if status != 202:
            assert status in {0, 409, 429, 503, 504}, answer
            return False
        self.bought.append(Bought(order_id=answer["id"], saga_id=answer["saga_id"], at=time.monotonic()))
        self._shop.accepted.append(uuid.UUID(answer["saga_id"]))
        return True
