"""Payment after `retain` has deleted its inbox rows: repeated messages move no money, and are answered with the present state."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import msgspec
import psycopg
import pytest
from integration import ops_lab
from integration.payment_till import order_of

from sagapost_contracts import events
from sagapost_ops import cli
from sagapost_sandbox.testing import services

pytestmark = pytest.mark.anyio

AGED = "UPDATE inbox SET received_at = now() - interval '31 days' RETURNING message_id"
PAYMENT = "SELECT status, version, amount, transaction_id, code FROM payments"
LEDGER = "SELECT kind, amount, transaction_id FROM ledger ORDER BY id"
# under another id, and so not known to its readers
SAID_TWICE = "SELECT type FROM outbox WHERE type IN ('PaymentProcessed', 'PaymentFailed') GROUP BY type HAVING count(DISTINCT event_id) > 1"
Start = Callable[[str, Mapping[str, str]], services.Service]


class Case(NamedTuple):
    """A card, the messages in their order, what moves, the events that say so, and which events answer the same messages again."""

    card: str
    names: list[str]
    moves: list[str]
    told: list[str]
    answers: set[str]


CASES = {
    "captured": Case("pm_card_ok", ["order"], ["charge"], ["PaymentProcessed"], {"PaymentProcessed"}),
    "refunded": Case("pm_card_ok", ["order", "cancel"], ["charge", "refund"], ["PaymentProcessed", "PaymentRefunded"], {"PaymentRefunded"}),
    "declined": Case("pm_card_declined", ["order"], [], ["PaymentFailed"], {"PaymentFailed"}),
    "declined and cancelled": Case(
        "pm_card_declined", ["order", "cancel"], [], ["PaymentFailed", "PaymentVoided"], {"PaymentFailed", "PaymentVoided"}
    ),
    "cancelled first": Case("pm_card_ok", ["cancel", "order"], [], ["PaymentVoided", "PaymentVoided"], {"PaymentVoided"}),
}


class Payment:
    """A payment process, and what one order's messages did to its database and to the provider."""

    def __init__(self, service: services.Service, vhost: str, dsn: str, provider: services.Service, order: events.OrderCreated) -> None:
        cancel = events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2)
        self.messages: dict[str, tuple[events.Message, UUID]] = {"order": (order, uuid4()), "cancel": (cancel, uuid4())}
        self._service = service
        self._vhost = vhost
        self._dsn = dsn
        self._provider = provider
        self._order = order

    async def deliver(self, names: list[str], eventually: Callable[..., Any]) -> None:
        """Publish messages one after the other, each when the one before it has been handled."""
        for name in names:
            before = ops_lab.handled(self._service)
            message, message_id = self.messages[name]
            await ops_lab.publish(self._vhost, ops_lab.sealed(message, message_id))
            await eventually(ops_lab.soon(functools.partial(self._is_handled, before)), 20)

    def _is_handled(self, before: int) -> bool:
        return ops_lab.handled(self._service) > before

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Read from the payment database."""
        with psycopg.connect(self._dsn) as conn:
            return conn.execute(query.encode()).fetchall()

    def moved(self) -> list[str]:
        """Return what moved at the provider for this order."""
        answer = httpx.get(f"{self._provider.url}/v1/ledger?reference={self._order.saga_id}")
        return [one["kind"] for one in msgspec.json.decode(answer.content)]

    def told(self) -> list[str]:
        """Return the types of the events in the outbox."""
        return [str(row[0]) for row in self.ask("SELECT type FROM outbox ORDER BY id")]


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
async def test_messages_that_come_again_after_the_inbox_forgot_move_no_money(
    *,
    order_db: str,
    payment_db: str,
    vhost: str,
    provider: services.Service,
    start_service: Start,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    backwards: bool,
) -> None:
    """No second charge, no second refund, the same row; OrderCreated is answered under the first event's id, a command with the end."""
    known = CASES[case]
    env = {"SAGAPOST_DATABASE_URL": payment_db, "SAGAPOST_AMQP_URL": vhost, "SAGAPOST_PROVIDER_URL": provider.url}
    order = msgspec.structs.replace(order_of(known.card), order_id=1042)  # a number that no log takes for that of a card
    payment = Payment(start_service("payment", env).wait_ready(), vhost, payment_db, provider, order)
    await payment.deliver(known.names, eventually)
    first = (payment.moved(), payment.told())
    books = payment.ask(PAYMENT), payment.ask(LEDGER)
    payment.ask(AGED)
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", order_db)
    monkeypatch.setenv("SAGAPOST_PAYMENT_DATABASE_URL", payment_db)
    monkeypatch.setattr(sys, "argv", ["./sagapost", "retain", "--database", "payment"])
    retained = cli.run()
    left = payment.ask("SELECT count(*) FROM inbox")

    await payment.deliver(known.names[::-1] if backwards else known.names, eventually)

    assert (retained, left) == (0, [(0,)])
    assert first == (known.moves, known.told)
    assert payment.moved() == known.moves
    assert (payment.ask(PAYMENT), payment.ask(LEDGER)) == books
    assert set(payment.told()[len(known.told) :]) == known.answers
    assert payment.ask(SAID_TWICE) == []
