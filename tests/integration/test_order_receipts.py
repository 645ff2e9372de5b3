"""A receipt and a cancellation at once, over HTTP on a real PostgreSQL: no receipt goes after the refund was decided."""

from collections.abc import AsyncGenerator, Generator, Mapping

import httpx
import psycopg
import pytest
from integration import order_walk, pool_kit

from sagapost_chassis import db
from sagapost_order import domain, moves, saga_queries, states
from sagapost_sandbox.testing import polling, servers, services

pytestmark = pytest.mark.anyio

LEASE_S = 660


@pytest.fixture(scope="module")
def shared_db(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[str]:
    """Share one order database among the tests here."""
    with order_walk.database(database_server, templates) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def service(shared_db: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[services.Service]:
    """Run one order service without a broker for all tests here."""
    log = tmp_path_factory.mktemp("order") / "service.log"
    with order_walk.running("order", log, DATABASE_URL=shared_db, AMQP_URL=order_walk.NOWHERE, **order_walk.PATIENT) as running:
        yield running


@pytest.fixture
async def pool(shared_db: str) -> AsyncGenerator[db.Pool]:
    """Open a pool on the database, to let things happen."""
    async with pool_kit.opened(shared_db) as opened:
        yield opened


@pytest.fixture
async def client(service: services.Service) -> AsyncGenerator[httpx.AsyncClient]:
    """Open a client of the service."""
    async with httpx.AsyncClient(base_url=service.url, timeout=20) as opened:
        yield opened


async def ask(client: httpx.AsyncClient, order: domain.Order) -> object:
    """Ask as the email service does before a receipt."""
    answer = await client.post(f"/sagas/{order.saga_id}/receipt")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def cancel(client: httpx.AsyncClient, order: domain.Order) -> tuple[int, str]:
    """Cancel as the customer, and return status and the order's status."""
    answer = await client.post(f"/orders/{order.id}/cancel")
    return answer.status_code, answer.json()["status"]


async def state_of(pool: db.Pool, order: domain.Order) -> str:
    """Read where the saga stands."""
    async with db.connection(pool) as conn:
        row = await saga_queries.saga(conn, order.saga_id, None)
    assert row is not None
    return row.state


@pytest.mark.parametrize("state", [states.CREATED, states.PAID, states.NOTIFY_FAILED])
async def test_a_receipt_of_an_order_that_stands_may_go(client: httpx.AsyncClient, pool: db.Pool, shared_db: str, state: str) -> None:
    """The answer is yes, with the time that is left for it; it writes no history and no version."""
    order = await order_walk.place(pool, state)
    before = order_walk.history(shared_db, order)

    assert await ask(client, order) == {"send": True, "lease_s": LEASE_S}

    assert order_walk.history(shared_db, order) == before


@pytest.mark.parametrize("state", [states.NOTIFIED, states.COMPENSATING, states.COMPENSATED, states.COMPENSATION_FAILED])
async def test_a_receipt_of_an_order_that_does_not_stand_may_not_go(client: httpx.AsyncClient, pool: db.Pool, state: str) -> None:
    """A receipt that was reported, a refund that was decided: the answer is no, and names the state."""
    order = await order_walk.place(pool, state)

    assert await ask(client, order) == {"send": False, "state": state}


@pytest.mark.parametrize("saga_id", ["0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11", "x"])
async def test_a_receipt_of_no_saga_is_404(client: httpx.AsyncClient, saga_id: str) -> None:
    """What is not there has no receipt."""
    assert (await client.post(f"/sagas/{saga_id}/receipt")).status_code == 404


@pytest.mark.parametrize("outcome", [states.EMAIL_SENT, states.EMAIL_FAILED])
async def test_a_cancellation_waits_for_the_receipt_that_is_being_sent(
    client: httpx.AsyncClient, pool: db.Pool, shared_db: str, outcome: str
) -> None:
    """202 at once and noted; the refund is decided when the outcome of the mail is known, and not before."""
    order = await order_walk.place(pool, states.PAID)
    await ask(client, order)

    assert await cancel(client, order) == (202, "cancelling")
    assert await cancel(client, order) == (202, "cancelling")
    noted = order_walk.history(shared_db, order)[-1]
    assert (noted[1:4], await state_of(pool, order)) == (("CancelRequested", "paid", "applied"), "paid")
    assert "CancelPayment" not in order_walk.outbox(shared_db, order)

    await order_walk.happen(pool, order, outcome)

    assert order_walk.history(shared_db, order)[-1][1:4] == (outcome, "compensating", "applied")
    assert order_walk.outbox(shared_db, order).count("CancelPayment") == 1


async def test_a_receipt_that_is_asked_for_again_is_denied_and_the_cancellation_applied(
    client: httpx.AsyncClient, pool: db.Pool, shared_db: str
) -> None:
    """Who asks again is not sending: the cancellation that waits is applied at once."""
    order = await order_walk.place(pool, states.PAID)
    await ask(client, order)
    await cancel(client, order)

    assert await ask(client, order) == {"send": False, "state": "compensating"}

    assert order_walk.outbox(shared_db, order).count("CancelPayment") == 1


async def test_a_cancellation_waits_no_longer_than_the_receipt_may_take(client: httpx.AsyncClient, pool: db.Pool, shared_db: str) -> None:
    """An email service that died reports nothing: the sweeper applies the cancellation when the receipt's time is over."""
    order = await order_walk.place(pool, states.PAID)
    await ask(client, order)
    await cancel(client, order)
    with psycopg.connect(shared_db, autocommit=True) as sql:
        found = sql.execute("SELECT deadline_kind, deadline_at = receipt_until FROM sagas WHERE id = %s", [order.saga_id]).fetchone()
        assert found == ("receipt", True)
        sql.execute("UPDATE sagas SET deadline_at = now(), receipt_until = now() WHERE id = %s", [order.saga_id])

    async def is_applied() -> bool:
        return await state_of(pool, order) != "paid"

    await polling.eventually(is_applied)

    assert order_walk.history(shared_db, order)[-1][1:3] == ("Deadline", "compensating")


async def test_a_lease_from_a_clock_that_was_set_back_is_not_believed(client: httpx.AsyncClient, pool: db.Pool, shared_db: str) -> None:
    """A lease that ends an hour from now can be none of today's: the cancellation is applied at once."""
    order = await order_walk.place(pool, states.PAID)
    await ask(client, order)
    with psycopg.connect(shared_db, autocommit=True) as sql:
        sql.execute("UPDATE sagas SET receipt_until = receipt_until + interval '1 hour' WHERE id = %s", [order.saga_id])

    await cancel(client, order)

    assert await state_of(pool, order) == "compensating"


async def test_a_noted_cancellation_survives_the_payment_and_is_not_forgotten(
    client: httpx.AsyncClient, pool: db.Pool, shared_db: str
) -> None:
    """Email hears of the payment first: the note of an order that is still `created` stays when it becomes `paid`."""
    order = await order_walk.place(pool, states.CREATED)
    await ask(client, order)
    await cancel(client, order)

    await order_walk.happen(pool, order, states.PAYMENT_PROCESSED)
    assert (await state_of(pool, order), (await client.get(f"/orders/{order.id}/status")).json()["status"]) == ("paid", "cancelling")
    await order_walk.happen(pool, order, states.EMAIL_SENT)

    assert await state_of(pool, order) == "compensating"
    with psycopg.connect(shared_db, autocommit=True) as sql, pytest.raises(psycopg.errors.CheckViolation):
        sql.execute("UPDATE sagas SET cancel_noted = 'cancelled' WHERE id = %s", [order.saga_id])


async def test_the_sweeper_asks_for_no_receipt_that_is_being_sent(pool: db.Pool, client: httpx.AsyncClient, shared_db: str) -> None:
    """A deadline that passes while the receipt is being sent counts no attempt, sends nothing and writes no history."""
    order = await order_walk.place(pool, states.PAID)
    await ask(client, order)
    before = order_walk.history(shared_db, order)
    with psycopg.connect(shared_db, autocommit=True) as sql:
        sql.execute("UPDATE outbox_cursor SET lo = pg_current_snapshot()")
        sql.execute("UPDATE sagas SET deadline_at = now() WHERE id = %s", [order.saga_id])
        query = "SELECT deadline_at > now() + interval '1 minute', attempts FROM sagas WHERE id = %s"

        async def is_put_off() -> bool:
            return sql.execute(query, [order.saga_id]).fetchone() == (True, 0)

        await polling.eventually(is_put_off)

    assert order_walk.history(shared_db, order) == before
    assert order_walk.outbox(shared_db, order) == ["OrderCreated"]


async def test_a_cancelled_order_is_done_when_its_customer_was_told(client: httpx.AsyncClient, pool: db.Pool, shared_db: str) -> None:
    """`done` and `end` come with the cancellation mail; the version seen then is the last, whatever comes twice."""
    order = await order_walk.place(pool, states.COMPENSATING)
    async with order_walk.streamed(f"{client.base_url}/sagas/{order.saga_id}/events") as events:
        await order_walk.heard(events, 2)
        await order_walk.happen(pool, order, states.PAYMENT_VOIDED)
        await order_walk.heard(events)
        ended = (await client.get(f"/sagas/{order.saga_id}")).json()
        assert (ended["state"], ended["done"], ended["steps"][-1]["name"], ended["steps"][-1]["state"]) == (
            "compensated",
            False,
            "cancellation",
            "running",
        )
        await order_walk.happen(pool, order, order_walk.TOLD)
        told, end = await order_walk.heard(events, 2)
    done = await client.get(f"/sagas/{order.saga_id}")
    for again in (order_walk.TOLD, states.PAYMENT_VOIDED):
        await order_walk.happen(pool, order, again)

    with psycopg.connect(shared_db) as sql:
        assert sql.execute("SELECT late_messages FROM sagas WHERE id = %s", [order.saga_id]).fetchone() == (2,)
    assert (told["event"], end["event"], done.json()["done"]) == ("transition", "end", True)
    assert done.json()["steps"][-1]["state"] == "done"
    assert (await client.get(f"/sagas/{order.saga_id}")).headers["etag"] == done.headers["etag"] == f'"{told["id"]}"'


async def test_what_operators_write_is_shown_to_operators_only(client: httpx.AsyncClient, pool: db.Pool) -> None:
    """The customer's saga and stream hold neither the operator's name nor the words; the operators' have both."""
    order = await order_walk.place(pool, states.PAID)
    headers = {"Sagapost-Client": "jane", "If-Match": "*"}
    await client.post(f"/sagas/{order.saga_id}/compensate", json={"reason": "INTERNAL: fraud"}, headers=headers)

    theirs, ours = await client.get(f"/sagas/{order.saga_id}"), await client.get(f"/ops/sagas/{order.saga_id}")
    async with order_walk.streamed(f"{client.base_url}/sagas/{order.saga_id}/events") as events:
        streamed = await order_walk.heard(events, 3)

    assert "INTERNAL" not in theirs.text + str(streamed)
    assert "jane" not in theirs.text + str(streamed)
    assert ("INTERNAL: fraud" in ours.text, "jane" in ours.text) == (True, True)


async def test_while_its_message_has_not_left_no_deadline_is_applied(order_db: str) -> None:
    """Neither nudge nor cancellation while OrderCreated is in the outbox or set aside by the relay: the time to pay begins anew."""
    async with pool_kit.opened(order_db) as pool:
        order = await order_walk.place(pool, states.CREATED)
        await leave_late(pool, order, order_db)


async def leave_late(pool: db.Pool, order: domain.Order, dsn: str) -> None:
    """Let deadlines pass before, while and after a message leaves."""
    with psycopg.connect(dsn, autocommit=True) as sql:

        async def sweep(kind: str) -> tuple[str, str, list[str]]:
            sql.execute(
                "UPDATE sagas SET deadline_at = CASE id WHEN %(id)s THEN now() - interval '1 hour' ELSE now() + interval '1 day' END,"
                " deadline_kind = CASE id WHEN %(id)s THEN %(kind)s ELSE deadline_kind END WHERE deadline_at IS NOT NULL",
                {"id": order.saga_id, "kind": kind},
            )
            await moves.sweep(pool, states.POLICY, (), moves.Swept())
            (found,) = sql.execute("SELECT state, deadline_kind FROM sagas WHERE id = %s", [order.saga_id]).fetchall()
            return (*found, order_walk.outbox(dsn, order))

        sql.execute("UPDATE outbox_cursor SET lo = '1:1:'")
        for kind in ("nudge", "pay", "answer"):
            assert await sweep(kind) == ("created", "nudge", ["OrderCreated"])
        sql.execute("UPDATE outbox_cursor SET lo = pg_current_snapshot()")
        sql.execute(
            "INSERT INTO outbox_parked SELECT id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload,"
            " created_at, 'waiting', 'nacked', '', 1, now() FROM outbox WHERE aggregate = %s",
            [f"order-{order.id}"],
        )
        assert await sweep("answer") == ("created", "nudge", ["OrderCreated"])
        sql.execute("UPDATE outbox_parked SET state = 'parked'")
        assert await sweep("answer") == ("created", "nudge", ["OrderCreated"] * 2)
        sql.execute("DELETE FROM outbox_parked")
        assert await sweep("answer") == ("created", "nudge", ["OrderCreated"] * 2)
        sql.execute("UPDATE outbox_cursor SET lo = pg_current_snapshot()")

        assert await sweep("answer") == ("compensating", "compensate", ["OrderCreated", "OrderCreated", "CancelPayment"])
