"""An outage of the broker that is longer than the time to pay cancels no order that was accepted."""

import psycopg
from faults.stack import Stack

from sagapost_sandbox.testing import polling, servers

ORDERS = 20
WINDOW_S = 6
WINDOWS = 4
OVER = "SELECT count(*) FROM sagas WHERE now() > created_at + %s * interval '1 second'"
MESSAGES = "SELECT coalesce(max(messages), 0) FROM (SELECT count(*) AS messages FROM outbox GROUP BY aggregate) AS found"


def test_an_outage_of_four_pay_windows_cancels_nothing(fragile_stack: Stack, private_broker: servers.Broker) -> None:
    """Twenty checkouts, and no broker for four times as long as they may be paid: all are paid afterwards, with three messages each."""
    fragile_stack.change("order", {"SAGAPOST_PAY_WINDOW_S": str(WINDOW_S)})
    fragile_stack.replace("order").wait_ready(60)
    private_broker.kill()
    answers = [fragile_stack.checkout() for _ in range(ORDERS)]
    assert [status for status, _ in answers] == [202] * ORDERS
    with psycopg.connect(str(fragile_stack.known.order_database_url), autocommit=True) as sql:
        polling.eventually(lambda: sql.execute(OVER, [WINDOWS * WINDOW_S]).fetchone() == (ORDERS,), WINDOWS * WINDOW_S + 30)
        states = sql.execute("SELECT state, count(*) FROM sagas GROUP BY state").fetchall()
        (most,) = sql.execute(MESSAGES).fetchone() or (0,)
    assert (states, most <= 3) == ([("created", ORDERS)], True), most

    private_broker.start()

    ended = [fragile_stack.ended(answer["saga_id"])["state"] for _, answer in answers]
    assert ended == ["notified"] * ORDERS
    mails = [mail["MessageID"] for _, answer in answers for mail in fragile_stack.mails(answer["user_email"])]
    assert [mail for mail in mails if mail.startswith("cancellation")] == []
    fragile_stack.verified()
