"""What customers and operators do to a saga over HTTP: cancel, act, list; on the real service and database, in every state."""

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

import httpx
import pytest
from integration import order_walk, pool_kit

from sagapost_chassis import db
from sagapost_order import domain, states
from sagapost_sandbox.testing import servers, services

pytestmark = pytest.mark.anyio

Json = dict[str, Any]
WHY = "the provider is back, ticket 4711"
BODIES: Mapping[str, Json] = {"mark-refunded": {"reason": WHY, "reference": "wire 17"}}
# page 5 of the design: what each action makes of each state; the others have no use for it
ENDS: Mapping[str, Mapping[str, str]] = {
    "retry": {
        states.CREATED: states.CREATED,
        states.PAID: states.PAID,
        states.COMPENSATING: states.COMPENSATING,
        states.NOTIFY_FAILED: states.PAID,
        states.COMPENSATION_FAILED: states.COMPENSATING,
    },
    "compensate": {
        states.CREATED: states.COMPENSATING,
        states.PAID: states.COMPENSATING,
        states.NOTIFIED: states.COMPENSATING,
        states.COMPENSATING: states.COMPENSATING,
        states.NOTIFY_FAILED: states.COMPENSATING,
        states.COMPENSATION_FAILED: states.COMPENSATION_FAILED,
    },
    "waive-notify": {states.PAID: states.NOTIFIED, states.NOTIFY_FAILED: states.NOTIFIED},
    "mark-refunded": {states.COMPENSATING: states.COMPENSATED, states.COMPENSATION_FAILED: states.COMPENSATED},
}


@pytest.fixture(scope="module")
def shared_db(database_server: servers.Databases, templates: Mapping[str, str]) -> Generator[str]:
    """Give one database to all tests here."""
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


async def act(client: httpx.AsyncClient, order: domain.Order, action: str, body: Json, if_match: str) -> httpx.Response:
    """Act as the operator anna."""
    headers = {"Sagapost-Client": "anna", "If-Match": if_match}
    return await client.post(f"/sagas/{order.saga_id}/{action}", json=body, headers=headers)


@pytest.mark.parametrize("state", states.STATES)
async def test_an_order_is_cancelled_in_every_state(client: httpx.AsyncClient, pool: db.Pool, shared_db: str, state: str) -> None:
    """202 and where to watch while it is under way, 200 when it is over; asking again changes nothing and writes nothing."""
    order = await order_walk.place(pool, state, "shop")
    before = order_walk.history(shared_db, order)
    under_way = state in {states.COMPENSATING, states.COMPENSATED, states.COMPENSATION_FAILED}

    first = await client.post(f"/orders/{order.id}/cancel", headers={"Sagapost-Client": "shop"})
    after = order_walk.history(shared_db, order)
    again = await client.post(f"/orders/{order.id}/cancel", headers={"Sagapost-Client": "shop"})

    settled = state == states.COMPENSATED
    statuses = {states.COMPENSATED: "cancelled", states.COMPENSATION_FAILED: "attention"}
    assert first.status_code == again.status_code == (200 if settled else 202)
    assert first.headers["location"] == again.headers["location"] == f"/api/sagas/{order.saga_id}"
    assert first.headers.get("retry-after") == (None if settled else "1")
    assert (first.json()["id"], first.json()["status"]) == (order.id, statuses.get(state, "cancelling"))
    assert after[len(before) :] == (
        [] if under_way else [(len(before) + 1, "CancelRequested", "compensating", "applied", "http", "shop", None)]
    )
    assert order_walk.history(shared_db, order) == after
    assert order_walk.outbox(shared_db, order).count("CancelPayment") == 1


async def test_a_finished_order_past_its_window_is_not_cancelled(
    shared_db: str, pool: db.Pool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """409, nothing written; an order that is not finished has no window."""
    finished, unfinished = await order_walk.place(pool, states.NOTIFIED), await order_walk.place(pool, states.PAID)
    before = order_walk.history(shared_db, finished), order_walk.outbox(shared_db, finished)
    log = tmp_path_factory.mktemp("late") / "service.log"

    env = {"DATABASE_URL": shared_db, "AMQP_URL": order_walk.NOWHERE, "CANCEL_WINDOW_S": "0", **order_walk.PATIENT}
    with order_walk.running("order", log, **env) as late:
        async with httpx.AsyncClient(base_url=late.url, timeout=20) as client:
            refused = await client.post(f"/orders/{finished.id}/cancel")
            cancelled = await client.post(f"/orders/{unfinished.id}/cancel")
            shown = await client.get(f"/orders/{finished.id}")

    assert (refused.status_code, problem(refused)) == (409, "order-not-cancellable")
    assert cancelled.status_code == 202
    assert shown.json()["status"] == "completed"
    assert (order_walk.history(shared_db, finished), order_walk.outbox(shared_db, finished)) == before


@pytest.mark.parametrize("order_id", ["999999999", "0", "-1", "x", "9223372036854775808", "1'"])
async def test_an_unknown_order_is_not_cancelled(client: httpx.AsyncClient, order_id: str) -> None:
    """What is not there is 404, whatever it is called."""
    answer = await client.post(f"/orders/{order_id}/cancel")

    assert (answer.status_code, problem(answer)) == (404, "not-found")


@pytest.mark.parametrize("state", states.STATES)
@pytest.mark.parametrize("action", ENDS)
async def test_an_operator_acts_where_the_state_has_a_use_for_it(
    client: httpx.AsyncClient, pool: db.Pool, shared_db: str, action: str, state: str
) -> None:
    """Who acted and why stays in the history, also when it did nothing, which is 409."""
    order = await order_walk.place(pool, state)
    version = len(order_walk.history(shared_db, order))
    body = BODIES.get(action, {"reason": f"  {WHY} "})
    why = f"{WHY} (reference wire 17)" if action in BODIES else WHY

    answer = await act(client, order, action, body, f'"{version}"')

    shown = (await client.get(f"/ops/sagas/{order.saga_id}")).json()
    rows = order_walk.history(shared_db, order)
    event = f"Operator{action.title().replace('-', '')}"
    end = ENDS[action].get(state)
    outcome = "applied" if end else "ignored"
    assert rows[version:] == [(version + 1, event, end or state, outcome, "operator", "anna", why)]
    if end is None:
        assert (answer.status_code, problem(answer)) == (409, "saga-action-not-possible")
        assert shown["state"] == state
    else:
        assert (answer.status_code, answer.headers["location"]) == (202, f"/api/sagas/{order.saga_id}")
        assert answer.headers["etag"] == f'"{version + 1}"'
        assert answer.json() == shown
        assert (shown["state"], shown["version"], shown["history"][-1]["actor"]) == (end, version + 1, "anna")


async def test_money_given_back_by_hand_is_money_given_back(client: httpx.AsyncClient, pool: db.Pool) -> None:
    """After mark-refunded the books say so: refunded what was captured, the order cancelled, the payment step refunded."""
    order = await order_walk.place(pool, states.COMPENSATION_FAILED)

    shown = (await act(client, order, "mark-refunded", BODIES["mark-refunded"], "*")).json()
    status = (await client.get(f"/orders/{order.id}/status")).json()

    assert (shown["captured"], shown["refunded"], shown["attention"]) == ("49.99", "49.99", None)
    assert [step["state"] for step in shown["steps"]] == ["done", "refunded", "skipped", "running"]
    assert (status["status"], status["saga_state"]) == ("cancelled", "compensated")


@pytest.mark.parametrize("tag", ['"2"', "2", 'W/"2"', "*"])
async def test_a_version_is_named_quoted_bare_or_as_whatever_there_is(client: httpx.AsyncClient, pool: db.Pool, tag: str) -> None:
    """What names the version that there is lets the action pass."""
    order = await order_walk.place(pool, states.PAID)

    assert (await act(client, order, "retry", {"reason": WHY}, tag)).status_code == 202


@pytest.mark.parametrize(
    ("tag", "expected"),
    [(tag, (412, "version-mismatch")) for tag in ('"1"', '"3"', "1", 'W/"1"', "9" * 9)]
    + [
        (tag, (422, "validation-failed"))
        for tag in (None, "", '""', "0", '"2', '2"', '""2""', '"*"', "W/2", "w/x", '"1", "2"', "+2", "02", "2.0", "é", "9" * 40, "x" * 9000)
    ],
)
async def test_without_the_present_version_nothing_changes(
    client: httpx.AsyncClient, pool: db.Pool, shared_db: str, tag: str | None, expected: tuple[int, str]
) -> None:
    """Who looked at another version is told so (412); who does not say which, or not clearly, has to (422)."""
    order = await order_walk.place(pool, states.PAID)
    before = order_walk.history(shared_db, order), order_walk.outbox(shared_db, order)
    headers = [] if tag is None else [(b"If-Match", tag.encode())]

    answer = await client.post(f"/sagas/{order.saga_id}/compensate", json={"reason": WHY}, headers=headers)

    assert (answer.status_code, problem(answer)) == expected
    assert (order_walk.history(shared_db, order), order_walk.outbox(shared_db, order)) == before


async def test_two_versions_are_no_version(client: httpx.AsyncClient, pool: db.Pool) -> None:
    """A header that is sent twice is never resolved by guessing."""
    order = await order_walk.place(pool, states.PAID)
    headers = [("If-Match", '"2"'), ("If-Match", '"2"')]

    answer = await client.post(f"/sagas/{order.saga_id}/retry", json={"reason": WHY}, headers=headers)

    assert (answer.status_code, problem(answer)) == (422, "validation-failed")


@pytest.mark.parametrize(
    "sent",
    [
        ("retry", b"", "/reason", "missing"),
        ("retry", b"{}", "/reason", "missing"),
        ("retry", b'{"reason": ""}', "/reason", "missing"),
        ("retry", b'{"reason": " \\t\\n "}', "/reason", "missing"),
        ("retry", b'{"reason": null}', "/reason", "wrong_type"),
        ("retry", b'{"reason": 1}', "/reason", "wrong_type"),
        ("retry", b'{"reason": "' + b"x" * 501 + b'"}', "/reason", "out_of_range"),
        ("retry", b'{"reason": "a\\u0000b"}', "/reason", "wrong_format"),
        ("retry", b'{"reason": "a\\nb"}', "/reason", "wrong_format"),
        ("retry", b'{"reason": "a\\u001b[2Jb"}', "/reason", "wrong_format"),
        ("retry", b'{"reason": "ok", "extra": 1}', "/extra", "unknown_field"),
        ("retry", b'{"reason": "ok", "reference": "wire 17"}', "/reference", "unknown_field"),
        ("retry", b"[]", "", "wrong_type"),
        ("retry", b'"ok"', "", "wrong_type"),
        ("retry", b'{"reason": "card 4111 1111 1111 1111"}', "", "card_number"),
        ("mark-refunded", b'{"reason": "ok"}', "/reference", "missing"),
        ("mark-refunded", b'{"reason": "ok", "reference": " "}', "/reference", "missing"),
        ("mark-refunded", b'{"reason": "ok", "reference": "a\\u0000"}', "/reference", "wrong_format"),
        ("mark-refunded", b'{"reason": "ok", "reference": "' + b"x" * 101 + b'"}', "/reference", "out_of_range"),
        ("mark-refunded", b'{"reference": "wire 17"}', "/reason", "missing"),
    ],
)
async def test_an_action_without_a_reason_that_can_be_kept_is_422(
    client: httpx.AsyncClient, pool: db.Pool, shared_db: str, sent: tuple[str, bytes, str, str]
) -> None:
    """The answer points at what is wrong, and nothing changes."""
    action, body, pointer, code = sent
    order = await order_walk.place(pool, states.COMPENSATING)
    before = order_walk.history(shared_db, order)
    headers = {"If-Match": "*", **({"Content-Type": "application/json"} if body else {})}

    answer = await client.post(f"/sagas/{order.saga_id}/{action}", content=body, headers=headers)

    assert (answer.status_code, problem(answer)) == (422, "validation-failed")
    assert answer.json()["errors"] == [{"pointer": pointer, "code": code}]
    assert order_walk.history(shared_db, order) == before


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (("0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11/retry", b'{"reason": "x"}', {}), (404, "not-found")),
        (("x/retry", b'{"reason": "x"}', {}), (404, "not-found")),
        (("{saga_id}/explode", b'{"reason": "x"}', {}), (404, "not-found")),
        (("{saga_id}/retry", b"{", {}), (400, "malformed-request")),
        (("{saga_id}/retry", b'{"reason": "\xff"}', {}), (400, "malformed-request")),
        (("{saga_id}/retry", b'{"reason": "\\ud800"}', {}), (400, "malformed-request")),
        (("{saga_id}/retry", b'{"reason": "x", "reason": "y"}', {}), (400, "malformed-request")),
        (("{saga_id}/retry", b"[" * 30000, {}), (400, "malformed-request")),
        (("{saga_id}/retry", b'{"reason": "x"}', {"Content-Type": "text/plain"}), (415, "unsupported-media-type")),
        (("{saga_id}/retry", b'{"reason": "x"}', {"Content-Encoding": "gzip"}), (415, "unsupported-media-type")),
        (("{saga_id}/retry", b" " * 70000, {}), (413, "payload-too-large")),
    ],
)
async def test_what_is_no_action_is_refused(
    client: httpx.AsyncClient, pool: db.Pool, sent: tuple[str, bytes, dict[str, str]], expected: tuple[int, str]
) -> None:
    """Each kind of nonsense has its own answer, and none is a failure of the service."""
    path, body, headers = sent
    order = await order_walk.place(pool)
    named = {"Content-Type": "application/json", "If-Match": "*", **headers}

    answer = await client.post(f"/sagas/{path.format(saga_id=order.saga_id)}", content=body, headers=named)

    assert (answer.status_code, problem(answer)) == expected


async def test_the_list_shows_every_saga_once_from_the_newest_on(client: httpx.AsyncClient, pool: db.Pool) -> None:
    """Page by page nothing is left out and nothing comes twice, also when orders are placed meanwhile."""
    placed = [(await order_walk.place(pool)).id for _ in range(5)]

    first = (await client.get("/sagas", params={"limit": 2})).json()
    await order_walk.place(pool)
    second = (await client.get("/sagas", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    last = (await client.get("/sagas", params={"cursor": placed[0]})).json()

    assert [row["order_id"] for page in (first, second) for row in page["sagas"]] == placed[:0:-1]
    assert all(row["order_id"] < placed[0] for row in last["sagas"])
    assert (await client.get("/sagas", params={"cursor": 1})).json() == {"sagas": [], "next_cursor": None}


async def test_the_list_is_narrowed_down(client: httpx.AsyncClient, pool: db.Pool) -> None:
    """Each filter shows what it names and nothing else; together they narrow down further."""
    orders = {state: (await order_walk.place(pool, state)).id for state in states.STATES}
    parked = {orders[states.NOTIFY_FAILED], orders[states.COMPENSATION_FAILED]}

    async def listed(**filters: str) -> set[int]:
        found = (await client.get("/sagas", params={"limit": "7", **filters})).json()["sagas"]
        return {row["order_id"] for row in found} & set(orders.values())

    assert await listed() == set(orders.values())
    for state, order_id in orders.items():
        assert await listed(state=state) == {order_id}
    assert await listed(stuck="true") == await listed(attention="1") == await listed(attention="") == parked
    assert await listed(stuck="false", attention="0") == set(orders.values())
    assert await listed(state=states.NOTIFY_FAILED, stuck="true") == {orders[states.NOTIFY_FAILED]}
    assert await listed(state=states.PAID, attention="true") == set()


async def test_a_listed_saga_says_what_an_operator_has_to_know(client: httpx.AsyncClient, pool: db.Pool) -> None:
    """State, money, deadline, and why somebody is called."""
    order = await order_walk.place(pool, states.COMPENSATION_FAILED)

    (row,) = (await client.get("/sagas", params={"limit": 1})).json()["sagas"]

    assert row["saga_id"] == str(order.saga_id)
    assert {name: row[name] for name in ("order_id", "state", "version", "done", "stuck", "attention", "reason", "attempts")} == {
        "order_id": order.id,
        "state": "compensation_failed",
        "version": 4,
        "done": False,
        "stuck": True,
        "attention": "refund_failed",
        "reason": "cancelled",
        "attempts": 0,
    }
    assert (row["amount"], row["captured"], row["refunded"], row["currency"]) == ("49.99", "49.99", "0.00", "USD")
    assert row["deadline_at"] > row["updated_at"] >= row["created_at"]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        *((f"state={value}", "/state") for value in ("", "PAID", "none", "paid,created", "%00", "%ff", "paid%0a", "'")),
        *((f"{name}={value}", f"/{name}") for name in ("stuck", "attention") for value in ("yes", "2", "True", "%C2%A0")),
        *((f"limit={value}", "/limit") for value in ("", "0", "201", "-1", "1.0", "1e2", "%D9%A1", "x", "9" * 5000, "+1")),
        *((f"cursor={value}", "/cursor") for value in ("", "0", "x", "9223372036854775808", "1_0", "%F0%9F%98%80")),
        *((query, "") for query in ("stat=paid", "state=paid&state=created", "limit=1&limit=1", "a;b", "%", "=&x", "_=1")),
    ],
)
async def test_a_filter_that_means_nothing_is_422(client: httpx.AsyncClient, query: str, pointer: str) -> None:
    """A misspelt filter is never a list of something else."""
    answer = await client.get(f"/sagas?{query}")

    assert (answer.status_code, problem(answer)) == (422, "validation-failed")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def problem(answer: httpx.Response) -> str:
    """Check that this is a problem, and give its slug."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return str(answer.json()["type"]).removeprefix("/problems/")
