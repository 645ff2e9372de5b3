"""The breaker before the order service, and calls that are made again, against a real server that does as it is told."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest
from integration import told_server

from sagapost_chassis.errors import TransientError
from sagapost_gateway import breaker, errors, gate, upstream
from sagapost_sandbox.testing import polling

pytestmark = pytest.mark.anyio

MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
IN_PROGRESS = b'HTTP/1.1 409 Conflict\r\nContent-Length: 49\r\n\r\n{"type":"/problems/idempotency-in-progress"     }'


@pytest.fixture
async def told() -> AsyncGenerator[tuple[told_server.Told, str]]:
    """Run the server that does as it is told, and give its address."""
    server = told_server.Told()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        server.close()


@contextlib.asynccontextmanager
async def client(url: str, *, deadline_s: float = 3, max_connections: int = 4, max_queued: int = 2) -> AsyncGenerator[upstream.Order]:
    """Open the gateway's client, with its watch over the breaker."""
    stop = asyncio.Event()
    order = upstream.Order(url, deadline_s=deadline_s, max_connections=max_connections, max_waiting=2, max_queued=max_queued)
    async with order:
        watching = asyncio.create_task(order.run(stop))
        try:
            yield order
        finally:
            stop.set()
            await watching


async def outcome(order: upstream.Order, *, method: str = "GET", again: bool = False) -> str:
    """Make one call and name what came of it."""
    try:
        return str((await order.call(method, "/checkout" if method == "POST" else "/products", again=again)).status)
    except TransientError as exc:
        return type(exc).__name__


async def test_after_five_failures_in_a_row_nothing_is_called(told: tuple[told_server.Told, str]) -> None:
    """The sixth caller is refused without a call, and so is whoever would wait for a saga or a stream."""
    server, url = told
    server.script, server.healthy = [told_server.FAILED], False

    async with client(url) as order:
        outcomes = [await outcome(order) for _ in range(8)]
        with pytest.raises(errors.CircuitOpenError):
            await order.stream("/sagas/x/events", headers={})
        with pytest.raises(errors.CircuitOpenError):
            await order.poll("/sagas/x", headers={}, wait_s=5, gone=_never)

    assert outcomes == ["OrderUnavailableError"] * 5 + ["CircuitOpenError"] * 3
    assert len(server.seen) == 5


async def _never() -> None:
    await asyncio.Event().wait()


async def test_a_success_between_failures_and_refusals_keep_it_closed(told: tuple[told_server.Told, str]) -> None:
    """What the caller did wrong is no failure, and failures count in a row."""
    server, url = told
    server.script = [*[told_server.FAILED] * 4, MISSING, *[told_server.FAILED] * 4, told_server.OK, *[MISSING] * 20, told_server.OK]

    async with client(url) as order:
        outcomes = [await outcome(order) for _ in range(30)]

    assert "CircuitOpenError" not in outcomes
    assert outcomes.count("404") == 21


async def test_when_half_of_the_calls_fail_it_opens_too() -> None:
    """Every second call failing never makes five in a row."""
    circuit = breaker.Breaker(5)

    for _ in range(25):
        circuit.succeeded()
        circuit.failed()

    assert circuit.is_open


async def test_it_closes_by_itself_when_the_order_service_is_ready_and_nobody_was_sent_ahead(told: tuple[told_server.Told, str]) -> None:
    """The probe asks, not a customer: the first call after it is answered."""
    server, url = told
    server.script, server.healthy = [told_server.FAILED], False

    async with client(url) as order:
        while await outcome(order) != "CircuitOpenError":
            pass
        called = len(server.seen)
        await asyncio.sleep(2 * breaker.PROBE_S)
        assert (await outcome(order), len(server.seen)) == ("CircuitOpenError", called)
        server.script, server.healthy = [told_server.OK], True
        first = await polling.eventually(lambda: _passed(order))

    assert first == "200"
    assert len(server.seen) == called + 1


async def _passed(order: upstream.Order) -> str:
    found = await outcome(order)
    return "" if found == "CircuitOpenError" else found


async def test_an_order_service_that_only_seems_ready_gets_one_call_at_a_time(told: tuple[told_server.Told, str]) -> None:
    """Until something succeeds again one failure is enough."""
    server, url = told
    server.script = [told_server.FAILED]

    async with client(url) as order:
        while await outcome(order) != "CircuitOpenError":
            pass
        called = len(server.seen)
        assert await polling.eventually(lambda: _passed(order)) == "OrderUnavailableError"
        assert await outcome(order) == "CircuitOpenError"

    assert len(server.seen) == called + 1


async def test_a_call_that_may_be_repeated_survives_broken_connections(told: tuple[told_server.Told, str]) -> None:
    """A restart of the order service is not seen by whoever sent a key."""
    server, url = told
    server.script = [told_server.BREAK, told_server.BREAK, told_server.BREAK, told_server.OK]

    async with client(url) as order:
        found = await outcome(order, method="POST", again=True)

    assert found == "200"
    assert server.seen == ["POST /CHECKOUT"] * 4


async def test_a_call_that_may_not_be_repeated_is_sent_once(told: tuple[told_server.Told, str]) -> None:
    """Nobody knows whether it took effect."""
    server, url = told
    server.script = [told_server.BREAK, told_server.OK]

    async with client(url) as order:
        found = await outcome(order, method="POST")

    assert (found, len(server.seen)) == ("OrderBrokenError", 1)


async def test_a_broken_call_stays_one_although_the_next_attempt_is_cut_off(told: tuple[told_server.Told, str]) -> None:
    """The deadline ends an attempt that was begun late: it makes no timeout of a failure that was known before."""
    server, url = told
    server.script = [told_server.BREAK]
    server.going.clear()

    async with client(url) as order:
        asked = asyncio.create_task(outcome(order, method="POST", again=True))
        await polling.eventually(lambda: _seen(server))
        server.going.set()  # for the first attempt
        server.going.clear()
        found = await asked

    assert (found, server.seen) == ("OrderBrokenError", ["POST /CHECKOUT"] * 2)


async def _seen(server: told_server.Told) -> bool:
    return bool(server.seen)


async def test_a_repeated_call_waits_for_its_own_first_attempt(told: tuple[told_server.Told, str]) -> None:
    """409 to the second attempt means that the first one is still running; to a first attempt it is the caller's answer."""
    server, url = told

    async with client(url) as order:
        server.script = [IN_PROGRESS, told_server.OK]
        first = await outcome(order, method="POST", again=True)
        server.script = [told_server.BREAK, IN_PROGRESS, IN_PROGRESS, told_server.OK]
        repeated = await outcome(order, method="POST", again=True)

    assert (first, repeated) == ("409", "200")


async def test_a_call_that_may_have_taken_effect_is_seen_through_an_open_breaker(told: tuple[told_server.Told, str]) -> None:
    """It waits for the order service to come back, as long as its deadline lasts, rather than be told that nothing happened."""
    server, url = told
    server.script, server.healthy = [told_server.BREAK], False

    async with client(url, deadline_s=10) as order:
        asked = asyncio.create_task(outcome(order, method="POST", again=True))
        await polling.eventually(lambda: _refused(order))
        assert not asked.done()
        server.script, server.healthy = [told_server.OK], True
        assert await asked == "200"


async def _refused(order: upstream.Order) -> bool:
    return await outcome(order) == "CircuitOpenError"


async def test_where_nobody_listens_a_repeated_call_ends_with_the_breaker() -> None:
    """Nothing was sent, so it can be said that nothing was done, long before the deadline."""
    async with client("http://127.0.0.1:1", deadline_s=60) as order:
        found = await outcome(order, method="POST", again=True)

    assert found == "CircuitOpenError"


async def test_no_more_calls_than_may_are_under_way_and_few_wait(told: tuple[told_server.Told, str]) -> None:
    """The rest is refused at once and never reaches the order service."""
    server, url = told
    server.pause_s = 0.5

    async with client(url, max_connections=4, max_queued=2) as order:
        outcomes = await asyncio.gather(*(outcome(order, method="POST") for _ in range(20)))

    assert sorted(outcomes) == ["200"] * 4 + ["OverloadedError"] * 16
    assert len(server.seen) == 4


async def test_a_turn_comes_back_whatever_becomes_of_its_holder() -> None:
    """Neither a failure nor a caller who goes away, with a turn or before it, uses up a turn."""
    door = gate.Gate(1, 5, wait_s=60)

    async def hold(task_ends: asyncio.Event) -> None:
        async with door.turn():
            await task_ends.wait()

    for _ in range(3):
        never = asyncio.Event()
        holder, waiter = asyncio.create_task(hold(never)), asyncio.create_task(hold(never))
        await asyncio.sleep(0)
        waiter.cancel()
        holder.cancel()
        await asyncio.gather(holder, waiter, return_exceptions=True)
    with contextlib.suppress(ValueError):
        async with door.turn():
            raise ValueError

    assert not door.full()
    async with asyncio.timeout(5), door.turn():
        pass
