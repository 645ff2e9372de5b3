"""What only the primary has, because its standby is gone: it can be seen there, nobody acts on it, and a promotion may take it back."""

import concurrent.futures
import pathlib
import uuid
from collections.abc import Generator, Mapping

import psycopg
import pytest
from faults import conftest, pairs
from faults import stack as stacks

from sagapost_sandbox.testing import polling, servers

pytestmark = pytest.mark.timeout(240)

NOT_NOW = {0, 409, 503, 504}


@pytest.fixture
def shop(
    tmp_path: pathlib.Path, pair: pairs.Pair, database_server: servers.Databases, broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[stacks.Stack]:
    """Run every service, the order database on the pair, payment's on a server that waits for nobody."""
    with conftest.running(tmp_path, database_server, broker, templates, elsewhere={"order": pair.url("order")}) as made:
        yield made


def test_an_order_that_a_promotion_takes_back_was_never_answered_and_never_charged(pair: pairs.Pair, shop: stacks.Stack) -> None:
    """Its commit's wait is cut short: the customer, with the same key too, is told to come back, and the relay tells nobody."""
    body = {**stacks.CART, "user_email": "unreplicated@example.com"}
    key = {"Idempotency-Key": f'"{uuid.uuid4().hex}"'}
    assert shop.ended(shop.checkout()[1]["saga_id"])["state"] == "notified"
    pair.lose_standby()

    with concurrent.futures.ThreadPoolExecutor(1) as customer:
        first = customer.submit(shop.call, "POST", "/api/checkout", body, **key)
        polling.eventually(lambda: pair.waiting("sagapost-order"), 10)
        assert pair.end_waits("sagapost-order") == 1
        status, problem = first.result()
    assert status in NOT_NOW, problem
    status, problem = shop.call("POST", "/api/checkout", body, **key)
    assert status in NOT_NOW, problem
    polling.eventually(lambda: pair.waiting("relay-%-reader"), 10)  # the relay has read the order
    assert len(_charges(shop)) == 1

    pair.fail_over()
    answer = polling.eventually(lambda: _accepted(shop, body, key), 60)
    shop.accepted.append(uuid.UUID(answer["saga_id"]))
    assert shop.ended(answer["saga_id"])["state"] == "notified"
    assert {charge["reference"] for charge in _charges(shop)} == {str(saga_id) for saga_id in shop.accepted}
    shop.verified()


def test_an_event_that_a_promotion_takes_back_comes_again(pair: pairs.Pair, shop: stacks.Stack) -> None:
    """It was heard, but on the primary only: when it comes again it is known there, and yet not acknowledged."""
    shop.running["email"].terminate()  # or the order service would hear of the receipt, too
    shop.running["relay-payment"].terminate()  # nobody tells of the payment as long as the standby is there
    status, answer = shop.checkout()
    assert status == 202
    polling.eventually(lambda: _is_paid(shop), 30)
    pair.lose_standby()

    shop.start("relay-payment")
    polling.eventually(lambda: pair.waiting("sagapost-order"), 30)
    assert pair.end_waits("sagapost-order") >= 1
    polling.eventually(lambda: pair.waiting("sagapost-order"), 20)

    pair.fail_over()
    shop.start("email")
    assert shop.ended(answer["saga_id"])["state"] == "notified"
    shop.verified()


def _is_paid(shop: stacks.Stack) -> bool:
    with psycopg.connect(str(shop.known.payment_database_url)) as conn:
        return conn.execute("SELECT 1 FROM payments WHERE status = 'captured'").fetchone() is not None


def _charges(shop: stacks.Stack) -> list[dict[str, str]]:
    return [entry for entry in shop.movements() if entry["kind"] == "charge"]


def _accepted(shop: stacks.Stack, body: Mapping[str, object], key: Mapping[str, str]) -> dict[str, str]:
    status, answer = shop.call("POST", "/api/checkout", body, **key)
    return answer if status == 202 else {}
