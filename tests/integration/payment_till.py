"""One payment service without its broker, for the tests of its use cases and of its second looks."""

import http.client
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import msgspec
import psycopg

from sagapost_chassis import consuming, db, ids
from sagapost_contracts import events
from sagapost_payment import domain, handlers, queries, recovery
from sagapost_payment import provider as providers
from sagapost_sandbox.testing import services

ITEMS = (
    events.Line(product_id=1, name="Gaming Laptop", quantity=1, price=Decimal("1299.99")),
    events.Line(product_id=2, name="Wireless Mouse", quantity=2, price=Decimal("49.99")),
)
AMOUNT = Decimal("1399.97")


class Till:
    """One payment service without its broker: hands messages to the handlers, looks at what came of them."""

    def __init__(self, pool: db.Pool, psp: providers.HttpProvider, dsn: str, provider: services.Service) -> None:
        self.pool = pool
        self.psp = psp
        self.dsn = dsn
        self.provider = provider

    async def order(
        self, message: events.OrderCreated, delivery: consuming.Delivery | None = None, *, terms: domain.Terms = domain.TERMS
    ) -> None:
        """Deliver an OrderCreated."""
        await handlers.on_order_created(self.pool, self.psp, delivery or delivery_of(message), message, terms)

    async def cancel(
        self, order: events.OrderCreated, delivery: consuming.Delivery | None = None, *, terms: domain.Terms = domain.TERMS
    ) -> None:
        """Deliver a CancelPayment."""
        command = events.CancelPayment(order_id=order.order_id, saga_id=order.saga_id, reason="customer", saga_version=2)
        await handlers.on_cancel_payment(self.pool, self.psp, delivery or delivery_of(command), command, terms)

    async def intend(self, order: events.OrderCreated) -> None:
        """Leave the row that a process leaves that died before its charge."""
        async with db.transaction(self.pool) as conn:
            await queries.add(conn, [queries.Intent(order=order, terms=domain.TERMS)])

    async def charge(self, order: events.OrderCreated, key: str = "") -> str:
        """Charge behind the service's back, under its own key unless told otherwise, and give the charge's id."""
        captured = await self.psp.charge(
            key=key or domain.charge_key(order.saga_id),
            reference=order.saga_id,
            amount=order.amount,
            currency=order.currency,
            payment_method="pm_card_ok",
        )
        assert isinstance(captured, domain.Captured)
        return captured.transaction_id

    async def find(self, order: events.OrderCreated) -> domain.Captured:
        """Give the one charge of an order."""
        (found,) = await self.psp.find(order.saga_id)
        return found

    async def look(self, terms: domain.Terms = domain.TERMS) -> int:
        """Look at every payment whose time has come, as the sweeper does, and give their number."""
        claimed = await recovery.claim(self.pool, terms)
        for payment in claimed:
            await recovery.look(self.pool, self.psp, payment, terms)
        return len(claimed)

    def write(self, statement: str) -> None:
        """Change the payment database."""
        with psycopg.connect(self.dsn) as conn:
            conn.execute(statement.encode())

    def forget(self) -> None:
        """Put the payment database back to before all its payments, as a restore of an older copy does."""
        self.write("GRANT DELETE ON ledger TO CURRENT_USER; GRANT UPDATE ON duplicate_charges TO CURRENT_USER")
        self.write("DELETE FROM ledger; DELETE FROM payments; DELETE FROM inbox; DELETE FROM outbox")

    def due(self) -> None:
        """Let the time of every payment's next look have come."""
        self.write("UPDATE payments SET look_at = now() WHERE look_at IS NOT NULL")

    def behave(self, **behaviour: object) -> None:
        """Let the provider misbehave from now on; nothing given: no more."""
        connection = http.client.HTTPConnection("127.0.0.1", self.provider.port, timeout=5)
        try:
            connection.request("PUT", "/v1/behaviour", json.dumps(behaviour), {"Content-Type": "application/json"})
            assert connection.getresponse().status == 200
        finally:
            connection.close()

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """Read from the payment database."""
        with psycopg.connect(self.dsn) as conn:
            return conn.execute(statement.encode()).fetchall()

    def expire(self) -> None:
        """Let the window to pay be over."""
        self.write("UPDATE payments SET pay_before = now() - interval '1 minute'")

    def names(self) -> list[str]:
        """Give the names of the events in the outbox."""
        return [name for name, _ in self.told()]

    def status(self) -> tuple[object, ...]:
        """Give status, version and code of the one payment there is."""
        (found,) = self.rows("SELECT status, version, code FROM payments")
        return found

    def told(self) -> list[tuple[str, events.Message]]:
        """Give the events in the outbox."""
        return [
            (str(name), msgspec.json.decode(bytes(body), type=getattr(events, str(name))))
            for name, body in self.rows("SELECT type, payload FROM outbox ORDER BY id")
            if isinstance(body, bytes)
        ]

    def moved(self, order: events.OrderCreated) -> list[tuple[str, str]]:
        """Give what really moved at the provider for this order."""
        connection = http.client.HTTPConnection("127.0.0.1", self.provider.port, timeout=5)
        try:
            connection.request("GET", f"/v1/ledger?reference={order.saga_id}")
            return [(entry["kind"], entry["amount"]) for entry in json.loads(connection.getresponse().read())]
        finally:
            connection.close()


def again(order: events.OrderCreated) -> consuming.Delivery:
    """Wrap an order as the saga sends it again: the envelope is younger than the order."""
    return msgspec.structs.replace(delivery_of(order), time=datetime.now(UTC) + timedelta(minutes=5))


def order_of(payment_method: str = "pm_card_ok", *, minutes_left: float = 15) -> events.OrderCreated:
    """Make an order of two lines that wants to be paid with this token."""
    return events.OrderCreated(
        order_id=int(ids.uuid7()) >> 80,
        saga_id=ids.uuid7(),
        user_id=1,
        user_email="test@example.com",
        amount=AMOUNT,
        items=ITEMS,
        payment_method=payment_method,
        pay_before=datetime.now(UTC) + timedelta(minutes=minutes_left),
    )


def delivery_of(message: events.Message, message_id: UUID | None = None) -> consuming.Delivery:
    """Wrap a message as the broker would bring it."""
    return consuming.Delivery(
        message_id=message_id or uuid4(), type=type(message).__name__, message=message, attempt=1, time=datetime.now(UTC)
    )
