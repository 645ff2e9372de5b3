"""A database whose packets vanish without FIN, RST or ICMP: who notices how soon, what customers are told, and that nothing is lost.

SAGAPOST_TRIALS=20 gives distributions; the times are printed. What is asserted is that connections are given up and work goes on.
"""

import asyncio
import contextlib
import functools
import http.client
import os
import socket
import statistics
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
import pytest
from faults import conftest
from faults import stack as stacks
from integration import absent

from sagapost_chassis import db, topology
from sagapost_sandbox import errors
from sagapost_sandbox.testing import network, polling, proxy, servers

TRIALS = int(os.environ.get("SAGAPOST_TRIALS", "1"))
ADDRESSES = {"order": "10.77.0.3", "payment": "10.77.0.4"}
NEAR = ("order", "relay-order", "payment", "relay-payment")
GOOD = {200, 202}
# what each session tells the server to do with its end of the connection; the far end of the wire does it in the server's place
SERVER = {
    "tcp_keepalives_idle": (socket.TCP_KEEPIDLE, 5),
    "tcp_keepalives_interval": (socket.TCP_KEEPINTVL, 2),
    "tcp_keepalives_count": (socket.TCP_KEEPCNT, 3),
    "tcp_user_timeout": (socket.TCP_USER_TIMEOUT, 10_000),
}
CUSTOMERS = 4
CUSTOMER_PAUSE_S = 0.2
LOOK_S = 0.05
NOTICED_S = 20
HEALTH_S = 10
CHECK_S = 4  # twice what a readiness check may take, and less than a silent connection is kept
BACK_S = 90
pytestmark = pytest.mark.timeout(180 + 90 * TRIALS)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One call, in seconds of the monotonic clock; status 0 when there was no answer."""

    began: float
    ended: float
    status: int


class Buyer:
    """Buys one thing after the other, each again with its own key until it is known; `told` is what was answered, by key."""

    def __init__(self, shop: stacks.Stack) -> None:
        self._shop = shop
        self._key = uuid.uuid4().hex
        self.told: dict[str, int] = {}

    def __call__(self) -> int:
        """Make one call, and give its status."""
        status, answer = self.repeat(self._key)
        if status == 202:
            self.told[self._key] = answer["id"]
            self._shop.accepted.append(uuid.UUID(answer["saga_id"]))
            self._key = uuid.uuid4().hex
        return status

    def repeat(self, key: str) -> tuple[int, dict[str, Any]]:
        """Buy with a key."""
        return self._shop.call(
            "POST", "/api/checkout", {**stacks.CART, "user_email": "wire@example.com"}, **{"Idempotency-Key": f'"{key}"'}
        )


class Shop(msgspec.Struct, frozen=True, kw_only=True):
    """A stack whose databases are at the far end of a wire."""

    stack: stacks.Stack
    wire: network.Wire


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Generator[network.Wire]:
    """Give a wire on which packets can vanish; who is not root needs a kernel that lets users make namespaces."""
    with contextlib.ExitStack() as held:
        try:
            made = held.enter_context(network.Wire(tmp_path_factory.mktemp("wire")))
        except errors.NoNamespaceError as exc:
            if os.geteuid() == 0:
                raise
            absent.stop(str(exc))
        yield made


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory,
    wire: network.Wire,
    database_server: servers.Databases,
    broker: servers.Broker,
    templates: Mapping[str, str],
) -> Generator[Shop]:
    """Run every service; those with a database at one end of the wire, everything else at the other one."""
    with conftest.cloned(database_server, templates) as urls:
        vhost = f"wire-{uuid.uuid4().hex[:8]}"
        amqp_url = broker.create_vhost(vhost)
        asyncio.run(topology.declare(amqp_url))
        made = stacks.make(tmp_path_factory.mktemp("shop"), urls, amqp_url, broker, inside=dict.fromkeys(NEAR, wire.inside))
        try:
            with contextlib.ExitStack() as links:
                for service in NEAR:
                    variables = made.environment(service).items()
                    made.change(service, {name: _over(wire, links, service, name, url) for name, url in variables if "_URL" in name})
                made.change("sagapost_sandbox.provider", {"SAGAPOST_ALLOWED_HOSTS": network.FAR})  # its name at this end of the wire
                for service in ADDRESSES:  # what failed meanwhile comes back soon
                    made.change(service, {"SAGAPOST_RETRY_DELAYS_S": "1,1,5,5,5,5,5,5"})
                yield Shop(stack=made.start_all(), wire=wire)
        finally:
            made.stop()
            broker.delete_vhost(vhost)


def _over(wire: network.Wire, links: contextlib.ExitStack, service: str, name: str, url: str) -> str:
    """Lead a connection over the wire: a database's on an address of its own, for that is what is cut."""
    address = ADDRESSES[service.removeprefix("relay-")] if name == "SAGAPOST_DATABASE_URL" else network.FAR
    parts = urlsplit(url)
    listener = wire.listen(address)
    for option, value in SERVER.values():
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link = links.enter_context(proxy.Proxy(str(parts.hostname), int(parts.port or 0), listener))
    return proxy.through(url, link)


class Watch:
    """Asks a server again and again from a thread, and remembers each answer."""

    def __init__(self, ask: Callable[[], int], pause_s: float) -> None:
        self._ask = ask
        self._pause_s = pause_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.answers: list[Answer] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def first(self, since: float, *, good: bool) -> float:
        """Give when the first answer after a moment came that is good, or is not; 0 when there is none."""
        return min((one.ended for one in tuple(self.answers) if one.ended > since and (one.status in GOOD) == good), default=0.0)

    def _watch(self) -> None:
        while not self._over.wait(self._pause_s):
            began = time.monotonic()
            status = self._ask()
            self.answers.append(Answer(began=began, ended=time.monotonic(), status=status))


@pytest.mark.anyio
async def test_the_server_is_told_to_give_up_clients_that_have_vanished(payment_db: str) -> None:
    """Each session has the server's end probed too: what is left of vanished clients must not take all its connections."""
    async with await db.Connection.connect(db.dsn_of(payment_db, "test")) as conn:
        found = await (await conn.execute("SELECT name, setting::int FROM pg_settings WHERE name = ANY(%s)", [list(SERVER)])).fetchall()

    assert dict(found) == {name: value for name, (_, value) in SERVER.items()}  # the server reads these back from its socket


@pytest.mark.parametrize("lost", ["order", "payment"])
def test_a_database_that_falls_silent_is_given_up_and_taken_up_again(shop: Shop, lost: str) -> None:
    """Nobody hangs longer than the deadlines say, every old connection is given up, and each key is one order when packets flow again."""
    # an order has nothing to do with payment's database: whoever waits for seconds then waits for this machine
    shop.stack.change("gateway", {"SAGAPOST_DEADLINE_S": "5" if lost == "order" else "9"})
    shop.stack.replace("gateway").wait_ready()
    names = (lost, f"relay-{lost}")
    times_s: dict[str, list[float]] = defaultdict(list)
    buyers = [Buyer(shop.stack) for _ in range(CUSTOMERS)]
    with contextlib.ExitStack() as held:
        services = {name: held.enter_context(Watch(functools.partial(_ready, shop.stack, name), LOOK_S)) for name in names}
        control = held.enter_context(Watch(functools.partial(_ready, shop.stack, "payment" if lost == "order" else "order"), LOOK_S))
        customers = [held.enter_context(Watch(buyer, CUSTOMER_PAUSE_S)) for buyer in buyers]
        for _ in range(TRIALS):
            _cut_and_mend(shop, lost, services, customers, times_s)
    for what, each in times_s.items():
        sys.stdout.write(f"\n{lost} database, {what}, {len(each)} times: median {statistics.median(each):.2f} s, longest {max(each):.2f} s")
    answers = [one for customer in customers for one in customer.answers]
    longest = _longest_s(answers)
    statuses = Counter(one.status for one in answers)
    sys.stdout.write(f"\nanswers {dict(sorted(statuses.items()))}, the longest after {longest:.2f} s\n")

    assert statuses.keys() <= ({202} if lost == "payment" else {202, 409, 503, 504})  # 0: none within ten seconds
    assert all(one.status for service in services.values() for one in service.answers)
    assert all(_longest_s(service.answers) <= CHECK_S + _longest_s(control.answers) for service in services.values())
    for buyer in buyers:
        for key, order_id in buyer.told.items():
            assert polling.eventually(functools.partial(_same, buyer, key), 30) == order_id
    shop.stack.verified()


def _cut_and_mend(
    shop: Shop, lost: str, services: Mapping[str, Watch], customers: Sequence[Watch], times_s: dict[str, list[float]]
) -> None:
    """Lose one database without a word, wait until everybody has noticed, let it come back, and wait until all work again."""
    address, seen = ADDRESSES[lost], len(shop.stack.accepted)
    began = time.monotonic()
    polling.eventually(lambda: all(customer.first(began, good=True) for customer in customers), BACK_S)
    before = shop.wire.connections(address)
    assert before
    shop.wire.cut(address)
    cut = time.monotonic()
    polling.eventually(lambda: not before & shop.wire.connections(address), NOTICED_S)
    times_s["until every connection was given up"].append(time.monotonic() - cut)
    for name, service in services.items():
        polling.eventually(functools.partial(service.first, cut, good=False), NOTICED_S)
        times_s[f"until {name} was unready"].append(service.first(cut, good=False) - cut)
    if lost == "order":
        polling.eventually(lambda: all(customer.first(cut, good=False) for customer in customers), NOTICED_S)
        times_s["until each customer had an answer"].append(max(customer.first(cut, good=False) for customer in customers) - cut)
    shop.wire.mend(address)
    mended = time.monotonic()
    for name, service in services.items():
        polling.eventually(functools.partial(service.first, mended, good=True), BACK_S)
        times_s[f"back, until {name} was ready"].append(service.first(mended, good=True) - mended)
    polling.eventually(lambda: any(customer.first(mended, good=True) for customer in customers), BACK_S)
    times_s["back, until the first 202"].append(min(at for customer in customers if (at := customer.first(mended, good=True))) - mended)
    shop.stack.ended(str(shop.stack.accepted[-1]), deadline_s=BACK_S)
    times_s["back, until an order made since had ended"].append(time.monotonic() - mended)
    for saga_id in tuple(shop.stack.accepted[seen:]):
        shop.stack.ended(str(saga_id), deadline_s=BACK_S)
    times_s["back, until every order had ended"].append(time.monotonic() - mended)


def _ready(stack: stacks.Stack, name: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", stack.running[name].port, timeout=HEALTH_S)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _longest_s(answers: Sequence[Answer]) -> float:
    return max(one.ended - one.began for one in answers)


def _same(buyer: Buyer, key: str) -> int:
    status, answer = buyer.repeat(key)
    return int(answer["id"]) if status == 202 else 0
