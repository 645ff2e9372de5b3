"""`verify` against real books: silent when they are right, and loud, under the right number, for everything that can be wrong."""

import contextlib
from collections.abc import Generator, Mapping
from decimal import Decimal
from uuid import uuid4, uuid5

import aio_pika
import msgspec
import psycopg
import pytest
from integration import ops_books, ops_wrong
from integration.ops_books import STRANGERS, TOTAL, Books
from integration.ops_wrong import WRONG

from sagapost_contracts import topology
from sagapost_ops import errors, evidence, verify
from sagapost_ops.invariants.outcome import Expectations
from sagapost_sandbox import databases
from sagapost_sandbox.testing import servers, services

REFUNDED = (
    "WITH refund AS ("
    "    INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (%(order_id)s, 'refund', %(total)s, 'USD', 're')"
    ") UPDATE payments SET status = 'refunded' WHERE order_id = %(order_id)s"
)
BY_HAND = (
    (
        "INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, source, actor, reason, facts, at) "
        "SELECT saga_id, 4, 'notified', 'compensating', 'OperatorCompensate', 'applied', 'operator', 'ann', 'test', facts, at "
        "  FROM saga_history WHERE saga_id = %(saga)s AND seq = 3"
    ),
    (
        "INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, source, actor, reason, facts, at) "
        "SELECT saga_id, 5, 'compensating', 'compensated', 'OperatorMarkRefunded', 'applied', 'operator', 'ann', 'test', "
        "       facts || jsonb_build_object('refunded', facts ->> 'captured'), at "
        "  FROM saga_history WHERE saga_id = %(saga)s AND seq = 3"
    ),
    "UPDATE sagas SET state = 'compensated', refunded = captured, version = 5 WHERE id = %(saga)s",
)
WAIVED = (
    "UPDATE saga_history SET event = %(event)s, outcome = %(outcome)s WHERE saga_id = %(saga)s AND seq = 3",
    "UPDATE sagas SET notified_at = NULL WHERE id = %(saga)s",
)


@pytest.fixture
def books(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service) -> Books:
    """Write one finished order into books of its own."""
    return ops_books.write(order_db, payment_db, provider, mailbox)


def test_right_books_violate_nothing(books: Books) -> None:
    """A finished order that all books agree on is reported as right, and every invariant has looked at something."""
    report = verify.run(books.where, STRANGERS)

    assert report.ok, report
    assert [invariant.id for invariant in report.invariants] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(invariant.checked for invariant in report.invariants)


@pytest.fixture(scope="module")
def wrong(
    database_server: servers.Databases, templates: Mapping[str, str], provider: services.Service, mailbox: services.Service
) -> Generator[tuple[dict[int, tuple[str, ...]], dict[str, Books]]]:
    """Write one order per case into the same books, each wrong in its own way, and verify once."""
    with contextlib.ExitStack() as stack:
        urls = {service: stack.enter_context(_clone(database_server, templates[service], service)) for service in ("order", "payment")}
        made: dict[str, Books] = {}
        for case, (database, _, _, statements) in WRONG.items():
            made[case] = ops_books.write(urls["order"], urls["payment"], provider, mailbox)
            made[case].change(database, *statements)
        for database in ("order", "payment"):
            made["an order without a saga"].change(database, ops_books.PASSED)
        report = verify.run(made["an order without a saga"].where, STRANGERS, shown=100_000)
        yield {invariant.id: invariant.violations for invariant in report.invariants}, made


@contextlib.contextmanager
def _clone(server: servers.Databases, template: str, service: str) -> Generator[str]:
    name = f"{service}_{uuid4().hex}"
    databases.clone(server.admin_dsn, template, name, f"{service}_user")
    try:
        yield server.dsn(f"{service}_user", f"{service}_password", name)
    finally:
        databases.drop(server.admin_dsn, name)


@pytest.mark.parametrize("case", list(WRONG))
def test_what_is_wrong_is_found(case: str, wrong: tuple[dict[int, tuple[str, ...]], dict[str, Books]]) -> None:
    """Each single fault in a database is reported under its own invariant, in a sentence that names it."""
    violations, made = wrong
    _, number, sentence, _ = WRONG[case]

    expected = sentence.format_map(made[case].values)

    assert any(expected in violation for violation in violations[number]), (expected, violations[number])


@pytest.mark.parametrize("database", ["order", "payment"])
@pytest.mark.parametrize("statement", ["UPDATE outbox_cursor SET lo = '1:1:'", "DELETE FROM outbox_cursor WHERE shard = 0"])
def test_a_message_that_was_never_published_is_found(database: str, statement: str, books: Books) -> None:
    """A row that no cursor has passed is a violation; so is a row whose shard has no cursor."""
    books.change(database, statement)

    assert "has not been published" in books.violations()[7][0]


def test_a_second_charge_at_the_provider_is_found(books: Books, provider: services.Service) -> None:
    """The provider's own ledger is what counts: a charge that our books never saw is a violation."""
    ops_books.charge(provider, books.values["saga"], key="a second key")

    assert f"saga {books.values['saga']} has 2 charges at the provider" in books.violations()[3]


@pytest.mark.parametrize("noted", [True, False])
def test_a_surplus_charge_is_right_only_where_it_is_noted(books: Books, provider: services.Service, *, noted: bool) -> None:
    """A second charge that went back is fine when payment has written it down, and a violation when it has not."""
    charge_id = ops_books.charge(provider, books.values["saga"], key="a second key")
    ops_books.refund(provider, books.values["saga"], charge_id)
    books.values["surplus"] = charge_id
    if noted:
        books.change("payment", ops_wrong.NOTED)

    found = books.violations()

    assert (found == {}) == noted
    assert noted or f"saga {books.values['saga']} has 2 charges at the provider" in found[3]


def test_a_surplus_charge_that_was_kept_is_found(books: Books, provider: services.Service) -> None:
    """What payment has noted as given back must have gone back at the provider, to the cent."""
    books.values["surplus"] = ops_books.charge(provider, books.values["saga"], key="a second key")
    ops_books.refund(provider, books.values["saga"], books.values["surplus"], Decimal("1299.98"))
    books.change("payment", ops_wrong.NOTED)

    assert any("the provider took 1299.99 and gave back 1299.98" in violation for violation in books.violations()[3])


def test_a_refund_of_another_charge_is_found(books: Books, provider: services.Service) -> None:
    """A refund that our ledger has must be of the charge that it has, not of one that a forgetful provider made beside it."""
    other = ops_books.charge(provider, books.values["saga"], key="a second key")
    ops_books.refund(provider, books.values["saga"], other)
    books.change("payment", REFUNDED)

    assert any(f"a refund of charge {books.values['charge']} in our ledger, {other}" in line for line in books.violations()[3])


@pytest.mark.parametrize("twice", [True, False])
def test_money_given_back_by_hand_counts_once(books: Books, provider: services.Service, *, twice: bool) -> None:
    """What an operator gave back needs no refund at the provider; if the provider gives it back as well, that is a violation."""
    books.change("order", *BY_HAND)
    if twice:
        ops_books.refund(provider, books.values["saga"], books.values["charge"])
        books.change("payment", REFUNDED)

    found = books.violations().get(3, ())

    both = f"refunded; the ledger has {TOTAL}, {TOTAL * 2}, {TOTAL} of it by hand"
    assert any(both in violation for violation in found) == twice
    assert bool(found) == twice


@pytest.mark.parametrize(
    ("event", "outcome", "right"),
    [("OperatorWaiveNotify", "applied", True), ("OperatorWaiveNotify", "ignored", False), ("EmailSent", "applied", False)],
)
def test_only_a_waived_receipt_may_be_missing(  # the fixture's order has one
    order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service, *, event: str, outcome: str, right: bool
) -> None:
    """A finished order without a mail is right when an operator has waived the receipt, and in no other case."""
    books = ops_books.write(order_db, payment_db, provider, mailbox, has_receipt=False)
    books.values.update({"event": event, "outcome": outcome})
    books.change("order", *WAIVED)

    missing = f"saga {books.values['saga']} is notified and no receipt was accepted"

    assert (missing not in books.violations().get(5, ())) == right


@pytest.mark.parametrize(
    "statements",
    [
        (*WAIVED, "UPDATE sagas SET notified_at = now() WHERE id = %(saga)s"),
        ("UPDATE sagas SET state = 'compensated', refunded = captured WHERE id = %(saga)s",),
    ],
    ids=["waived", "compensated"],
)
def test_a_receipt_that_was_reported_must_be_there(
    *, order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service, statements: tuple[str, ...]
) -> None:
    """What counts as sent is looked for, whether the receipt was waived as well or the order taken back since."""
    books = ops_books.write(order_db, payment_db, provider, mailbox, has_receipt=False)
    books.values.update({"event": "OperatorWaiveNotify", "outcome": "applied"})
    books.change("order", *statements)

    assert f"saga {books.values['saga']} is notified and no receipt was accepted" in books.violations()[5]


def test_deadlines_may_pass_while_nobody_sweeps(books: Books) -> None:
    """With the services down on purpose a deadline that has passed is no violation: nobody can have kept it."""
    overdue = "UPDATE sagas SET state = 'notify_failed', deadline_at = now() - interval '1 minute', deadline_kind = 'notify'"
    books.change("order", overdue)

    assert 2 in books.violations()
    assert 2 not in books.violations(Expectations(strangers=True, consumers=False))


def test_a_charge_for_nobody_is_found_unless_strangers_are_expected(books: Books, provider: services.Service) -> None:
    """A charge whose order was lost shows, because its reference is no saga."""
    nobody = uuid4()
    ops_books.charge(provider, nobody)

    assert f"the provider has a charge for {nobody}, which is no saga" in verify_all(books, Expectations())[3]
    assert 3 not in books.violations()


def verify_all(books: Books, expected: Expectations) -> dict[int, tuple[str, ...]]:
    """Verify with more than the first sentences."""
    found = verify.run(books.where, expected, shown=100_000)
    return {invariant.id: invariant.violations for invariant in found.invariants}


def test_a_second_receipt_is_found_unless_a_crash_explains_it(books: Books, mailbox: services.Service) -> None:
    """Duplicates are violations beyond the number of crashes in the e-mail gap."""
    ops_books.mail(mailbox, "receipt", books.values["saga"], f"You paid {TOTAL:,} USD.")

    assert any("was sent 2 times" in violation for violation in books.violations()[5])
    assert books.violations(Expectations(strangers=True, duplicate_mails=1)) == {}


def test_a_receipt_of_another_amount_is_found(books: Books, mailbox: services.Service) -> None:
    """A mail that names another sum than the order is a violation."""
    ops_books.mail(mailbox, "receipt", books.values["saga"], "You paid 1.00 USD.")

    assert any("does not name 1299.99" in violation for violation in books.violations()[4])


def test_a_cancellation_mail_for_a_paid_order_is_found(books: Books, mailbox: services.Service) -> None:
    """Nobody is told of a cancellation that did not happen."""
    ops_books.mail(mailbox, "cancellation", books.values["saga"], "Cancelled.")

    assert any("which was not cancelled" in violation for violation in books.violations()[5])


def test_an_accepted_checkout_that_is_not_there_is_found(books: Books) -> None:
    """What a client got a 202 for must be in the database."""
    lost = uuid5(books.values["saga"], "lost")

    found = books.violations(Expectations(strangers=True, accepted=(lost, books.values["saga"])))

    assert found == {1: (f"saga {lost} was answered with 202 and is not there",)}


def test_an_open_transaction_is_found(books: Books) -> None:
    """A session that left its transaction open is named."""
    with psycopg.connect(str(books.where.order_database_url), application_name="forgotten") as conn:
        conn.execute("SELECT 1")

        report = verify.run(books.where, STRANGERS, settle_s=0)
        while report.ok:
            report = verify.run(books.where, STRANGERS, settle_s=0)

    assert any("forgotten" in violation and "left a transaction open" in violation for violation in report.invariants[7].violations)


@pytest.fixture
def with_broker(books: Books, vhost: str, broker: servers.Broker) -> Books:
    """Give the books with a broker whose queues are declared and that nobody consumes from."""
    api = broker.management
    url = f"http://{api.user}:{api.password}@{api.host}:{api.port}"
    return msgspec.structs.replace(books, where=msgspec.structs.replace(books.where, amqp_url=vhost, management_url=url))


def test_a_queue_nobody_listens_to_is_found(with_broker: Books) -> None:
    """Each work queue needs a consumer, unless the services are known to be down."""
    found = with_broker.violations()

    assert found == {8: tuple(f"nobody listens to {name}" for name in topology.WORK_QUEUES)}
    assert with_broker.violations(Expectations(strangers=True, consumers=False)) == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("queue", "number", "sentence"),
    [
        (topology.EMAIL_QUEUE, 8, "1 messages wait in email_service_queue"),
        (topology.dead_letter_queue(topology.EMAIL_QUEUE), 7, "1 dead letters, expected 0"),
        (topology.retry_queue(topology.EMAIL_QUEUE, 600), 7, "1 messages wait for another try"),
    ],
)
async def test_a_message_left_in_a_queue_is_found(with_broker: Books, queue: str, number: int, sentence: str) -> None:
    """Whatever waits in a work, retry or dead-letter queue is counted by the broker itself, at once."""
    connection = await aio_pika.connect(str(with_broker.where.amqp_url))
    async with connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(b"left"), queue)

    found = with_broker.violations(Expectations(strangers=True, consumers=False))

    assert found == {number: (sentence,)}


@pytest.mark.anyio
async def test_a_message_that_is_held_without_acknowledgement_is_found(with_broker: Books) -> None:
    """A consumer that took a message and never acknowledged it shows."""
    connection = await aio_pika.connect(str(with_broker.where.amqp_url))
    async with connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(b"held"), topology.EMAIL_QUEUE)
        queue = await channel.get_queue(topology.EMAIL_QUEUE)
        assert await queue.get(no_ack=False, timeout=10)

        report = verify.run(with_broker.where, Expectations(strangers=True, consumers=False))
        while report.ok:  # the broker tells of its channels every second
            report = verify.run(with_broker.where, Expectations(strangers=True, consumers=False))

    assert report.invariants[7].violations == ("1 messages are delivered and not acknowledged",)


def test_dead_letters_that_are_expected_are_right(with_broker: Books) -> None:
    """The expected number must be met exactly: fewer are a violation too."""
    found = with_broker.violations(Expectations(strangers=True, consumers=False, dead=1))

    assert found == {7: ("0 dead letters, expected 1",)}


def test_books_that_cannot_be_opened_are_one_sentence(books: Books) -> None:
    """A database that does not answer ends the command with exit code 2, not with a verdict."""
    where = msgspec.structs.replace(books.where, payment_database_url="postgresql://payment_user:secret@127.0.0.1:1/payment_db")

    with pytest.raises(errors.UnfitError, match="cannot be used") as raised:
        verify.run(where)

    assert raised.value.exit_code == 2
    assert "secret" not in str(raised.value)


def test_verify_never_writes(books: Books) -> None:
    """Its sessions are read-only: not even a mistake in a query could change what it looks at."""
    with evidence.gathered(books.where) as found, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        found.order.execute("DELETE FROM outbox")
