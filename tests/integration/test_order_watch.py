"""Whoever waits for a saga over HTTP: the long poll and the stream of events, on the real service and database."""

import asyncio
import inspect
import json
import ssl
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

import httpx
import pytest
from integration import order_walk, pool_kit

from sagapost_chassis import db
from sagapost_order import domain, saga_api, states, watch
from sagapost_sandbox.testing import servers, services

pytestmark = pytest.mark.anyio

WAITING = "sagapost_saga_waiting"
TLS = ssl.create_default_context()  # one for all clients: each would make its own, and that takes longer than to ask


@pytest.fixture(scope="module")
def shared_db(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[str]:
    """Give one database to all tests here."""
    with order_walk.database(database_server, templates) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def service(shared_db: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one order service without a broker for the tests that leave it running."""
    log = tmp_path_factory.mktemp("order") / "service.log"
    with order_walk.running("order", log, DATABASE_URL=shared_db, AMQP_URL=order_walk.NOWHERE, **order_walk.PATIENT) as running:
        yield running


@pytest.fixture
async def pool(shared_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on the database, to let things happen."""
    async with pool_kit.opened(shared_db) as opened:
        yield opened


def saga_url(service: services.Service, order: domain.Order) -> str:
    """Give the address of an order's saga."""
    return f"{service.url}/sagas/{order.saga_id}"


async def ask(url: str, **headers: str) -> tuple[httpx.Response, float]:
    """Read, and tell how long it took, in seconds."""
    began_s = time.monotonic()
    async with httpx.AsyncClient(timeout=40, verify=TLS) as client:
        answer = await client.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return answer, time.monotonic() - began_s


@pytest.mark.parametrize("tag", [None, '"1"', 'W/"1"', '"0", "1"', "*"])
async def test_a_poll_is_answered_when_the_saga_moves(service: services.Service, pool: db.Pool, tag: str | None) -> None:
    """Who waits for a later version, named or not, gets it as soon as it is there, and not before."""
    order = await order_walk.place(pool)
    tags = {"If_None_Match": tag} if tag else {}

    asking = asyncio.create_task(ask(saga_url(service, order), Prefer="wait=20", **tags))
    await order_walk.shows(service, WAITING, 1)
    began_s = time.monotonic()
    await order_walk.happen(pool, order, states.PAYMENT_PROCESSED)
    answer, _ = await asking
    took_s = time.monotonic() - began_s

    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.headers["etag"] == '"2"'
    assert took_s < 10
    if tag == "*":  # any version matches
        assert answer.status_code == 304
    else:
        assert (answer.status_code, answer.json()["state"], answer.json()["version"]) == (200, "paid", 2)


async def test_a_poll_ends_with_its_time_when_nothing_happens(service: services.Service, pool: db.Pool) -> None:
    """Nothing new in time is 304 for who named the version, and the same saga for who did not."""
    order = await order_walk.place(pool)
    url = saga_url(service, order)

    (named, named_s), (plain, plain_s) = await asyncio.gather(
        ask(url, Prefer="respond-async, wait=1", If_None_Match='"1"'), ask(url, Prefer="wait=1")
    )

    assert (named.status_code, named.content, named.headers["etag"]) == (304, b"", '"1"')
    assert (plain.status_code, plain.json()["version"]) == (200, 1)
    assert 1 <= named_s < 10
    assert 1 <= plain_s < 10


async def test_a_poll_is_answered_at_once_when_there_is_nothing_to_wait_for(service: services.Service, pool: db.Pool) -> None:
    """A saga that is done, a version that is not the one known, and a request without a wish to wait get their answer now."""
    new, done = await order_walk.place(pool), await order_walk.place(pool, states.NOTIFIED)
    new_url, done_url = saga_url(service, new), saga_url(service, done)

    answers = await asyncio.gather(
        ask(done_url, Prefer="wait=20"),
        ask(done_url, Prefer="wait=20", If_None_Match='"3"'),
        ask(new_url, Prefer="wait=20", If_None_Match='"7"'),
        ask(new_url, If_None_Match='"1"'),
        ask(new_url, Prefer="wait=soon"),
        ask(new_url, Prefer="wait=0"),
        ask(new_url, Prefer="wait=99999999"),
    )

    assert [answer.status_code for answer, _ in answers] == [200, 304, 200, 304, 200, 200, 200]
    assert max(took_s for _, took_s in answers) < 10
    assert ["preference-applied" in answer.headers for answer, _ in answers] == [True, True, True, False, False, False, False]


async def test_an_unknown_saga_is_404_at_once(service: services.Service) -> None:
    """Nobody waits for what is not there, neither in a poll nor in a stream."""
    for path in ("0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11", "x", "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11/events", "x/events"):
        answer, took_s = await ask(f"{service.url}/sagas/{path}", Prefer="wait=20")

        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert answer.json()["type"] == "/problems/not-found"
        assert took_s < 10


async def test_a_stream_tells_the_history_so_far_and_then_what_happens_until_the_end(service: services.Service, pool: db.Pool) -> None:
    """Each row comes once, in order, under its seq, as the saga's resource shows it; after `end` the stream is closed."""
    order = await order_walk.place(pool, states.PAID)

    async with order_walk.streamed(f"{saga_url(service, order)}/events") as events:
        before = await order_walk.heard(events, 2)
        await order_walk.shows(service, WAITING, 1)
        await order_walk.happen(pool, order, states.EMAIL_SENT)
        after = await order_walk.heard(events, 3)

    shown = (await ask(saga_url(service, order)))[0].json()["history"]
    assert [event["id"] for event in before] == ["1", "2"]
    assert [event["event"] for event in [*before, *after]] == ["transition", "transition", "transition", "end"]
    assert [json.loads(event["data"]) for event in [*before, after[0]]] == shown
    assert json.loads(after[1]["data"]) == {"state": "notified"}


@pytest.mark.parametrize(
    ("last", "told"), [(None, "123"), ("0", "123"), ("1", "23"), ("2", "3"), ("3", ""), ("4", "123"), ("x", "123"), ("9" * 30, "123")]
)
async def test_a_stream_goes_on_behind_the_last_event_that_arrived(
    service: services.Service, pool: db.Pool, last: str | None, told: str
) -> None:
    """Nothing is told twice, nothing is left out; who names a row that cannot be is told everything."""
    order = await order_walk.place(pool, states.NOTIFIED)

    async with order_walk.streamed(f"{saga_url(service, order)}/events", **({"Last_Event_ID": last} if last else {})) as events:
        found = await order_walk.heard(events, 9)

    assert "".join(event.get("id", "") for event in found) == told
    assert found[-1]["event"] == "end"


async def test_a_saga_that_goes_on_after_its_end_can_be_followed_again(service: services.Service, pool: db.Pool) -> None:
    """A finished order that is cancelled has a stream again, from where the first one ended."""
    order = await order_walk.place(pool, states.NOTIFIED)
    await order_walk.happen(pool, order, order_walk.CANCEL)

    async with order_walk.streamed(f"{saga_url(service, order)}/events", Last_Event_ID="3") as events:
        (cancelled,) = await order_walk.heard(events)
        await order_walk.happen(pool, order, states.PAYMENT_REFUNDED)
        (refunded,) = await order_walk.heard(events)
        await order_walk.happen(pool, order, order_walk.TOLD)
        told, end = await order_walk.heard(events, 2)

    assert [json.loads(event["data"])["to"] for event in (cancelled, refunded, told)] == ["compensating", "compensated", "compensated"]
    assert json.loads(told["data"])["mail"] == "cancellation"
    assert json.loads(end["data"]) == {"state": "compensated"}


async def test_a_client_that_goes_away_is_waited_for_no_longer(service: services.Service, pool: db.Pool) -> None:
    """The end of a connection is noticed without anything being sent on it: nothing is kept for it."""
    order = await order_walk.place(pool)

    async with order_walk.streamed(f"{saga_url(service, order)}/events") as events:
        await order_walk.heard(events)
        asking = asyncio.create_task(ask(saga_url(service, order), Prefer="wait=30"))
        await order_walk.shows(service, WAITING, 2)
        asking.cancel()
        await order_walk.shows(service, WAITING, 1)

    await order_walk.shows(service, WAITING, 0)
    assert order_walk.failures(service) == []


async def test_many_who_wait_for_many_sagas_all_hear_of_theirs(service: services.Service, pool: db.Pool) -> None:
    """Sixty waiting clients need no sixty connections to the database, and each hears of its own saga only."""
    orders = [await order_walk.place(pool) for _ in range(20)]
    asking = [
        asyncio.create_task(ask(saga_url(service, order), Prefer="wait=25", If_None_Match='"1"')) for order in orders for _ in range(3)
    ]
    await order_walk.shows(service, WAITING, 60)

    for order in orders[:10]:
        await order_walk.happen(pool, order, states.PAYMENT_PROCESSED)
    done, waiting = await _settled(asking, 30)

    assert {(await task)[0].json()["order_id"] for task in done} == {order.id for order in orders[:10]}
    assert len(waiting) == 30
    for task in waiting:
        task.cancel()


async def test_many_who_come_at_once_do_not_take_the_database_from_those_who_buy(service: services.Service, pool: db.Pool) -> None:
    """Four hundred streams opened together are all served, one after another, and checkouts beside them are answered."""
    orders = [await order_walk.place(pool, states.NOTIFIED) for _ in range(4)]
    cart = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 2, "quantity": 1, "price": "49.99"}]}

    async with httpx.AsyncClient(timeout=40, limits=httpx.Limits(max_connections=500)) as client:
        streams = [client.get(f"{saga_url(service, order)}/events") for order in 100 * orders]
        bought = [client.post(f"{service.url}/checkout", json=cart) for _ in range(20)]
        answers = await asyncio.gather(*streams, *bought)

    assert [answer.status_code for answer in answers] == [200] * 400 + [202] * 20
    assert {answer.text.count("event: transition") for answer in answers[:400]} == {3}
    assert all("event: end" in answer.text for answer in answers[:400])


async def test_sigterm_lets_nobody_wait(shared_db: str, pool: db.Pool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A service that is told to stop answers polls with what there is, ends streams without `end`, and is gone at once, with 0."""
    order = await order_walk.place(pool)
    log = tmp_path_factory.mktemp("stopped") / "service.log"
    with order_walk.running("order", log, DATABASE_URL=shared_db, AMQP_URL=order_walk.NOWHERE) as stopped:
        async with order_walk.streamed(f"{saga_url(stopped, order)}/events") as events:
            await order_walk.heard(events)
            asking = asyncio.create_task(ask(saga_url(stopped, order), Prefer="wait=30", If_None_Match='"1"'))
            await order_walk.shows(stopped, WAITING, 2)

            code = await asyncio.to_thread(stopped.terminate, 20)
            rest = await order_walk.heard(events)
            answer, _ = await asking

    assert code == 0
    assert rest == []
    assert (answer.status_code, answer.headers["etag"]) == (304, '"1"')
    assert order_walk.failures(stopped) == []


async def test_silence_is_broken_by_comments(pool: db.Pool) -> None:
    """Where nothing happens a comment comes in every interval, 15 seconds in the service, and it has no id that could be resumed from."""
    order, watcher, stop = await order_walk.place(pool), watch.Watch(pool), asyncio.Event()
    looking = asyncio.create_task(watcher.run(stop))

    stream = saga_api.stream(pool, watcher, order.saga_id, 0, comment_s=0.2)
    began_s = time.monotonic()
    told = [(await anext(stream)).encode() for _ in range(4)]
    took_s = time.monotonic() - began_s
    stop.set()
    rest = [message async for message in stream]
    await looking

    assert told[1].startswith(b"id: 1\r\nevent: transition\r\ndata: {")
    assert told[2:] == [b": still here\r\n\r\n"] * 2
    assert 0.4 <= took_s < saga_api.COMMENT_S
    assert rest == []
    assert inspect.signature(saga_api.stream).parameters["comment_s"].default == saga_api.COMMENT_S == 15


async def test_a_stream_ends_quietly_when_the_database_is_gone(shared_db: str) -> None:
    """What cannot be told ends the stream, so that the client asks again; it is no failure of the service."""
    async with db.open_pool(shared_db, "test") as lost:
        order, watcher = await order_walk.place(lost), watch.Watch(lost)
        stream = saga_api.stream(lost, watcher, order.saga_id, 0)
        await anext(stream)

    assert [message async for message in stream] == []


async def _settled(tasks: list[asyncio.Task[Any]], count: int) -> tuple[set[asyncio.Task[Any]], set[asyncio.Task[Any]]]:
    async with asyncio.timeout(10):
        while sum(task.done() for task in tasks) < count:
            await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    return {task for task in tasks if task.done()}, {task for task in tasks if not task.done()}
