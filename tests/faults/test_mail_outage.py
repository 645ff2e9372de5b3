"""A mail server that defers everything, or refuses our address, for a while: no order is parked, refunded or left without its mail."""

import pathlib
from collections.abc import Mapping

import psycopg
import pytest
from faults.conftest import running

from sagapost_sandbox.testing import polling, servers

PATIENT = {"SAGAPOST_NOTIFY_S": "1.5", "SAGAPOST_NOTIFY_MAX_S": "1.5", "SAGAPOST_NOTIFY_ATTEMPTS": "60"}


@pytest.mark.parametrize(
    ("policy", "code", "phase"), [("park", 451, "rcpt"), ("refund", 451, "rcpt"), ("refund", 554, "mail")], ids=["park", "refund", "sender"]
)
def test_every_receipt_comes_once_after_a_mail_server_that_deferred(
    policy: str,
    code: int,
    phase: str,
    *,
    tmp_path: pathlib.Path,
    database_server: servers.Databases,
    broker: servers.Broker,
    templates: Mapping[str, str],
) -> None:
    """451, or 554 to MAIL FROM, until each receipt was asked for five times: each comes once, no order is parked or refunded."""
    changes = {"order": PATIENT | {"SAGAPOST_NOTIFY_FAILURE": policy}, "email": {"SAGAPOST_RETRY_DELAYS_S": "1,1"}}
    with running(tmp_path, database_server, broker, templates, changes) as stack:
        stack.mailbox_behaves(reject=code, reject_at=phase)
        answers = [stack.checkout()[1] for _ in range(3)]

        def asked_for() -> bool:
            with psycopg.connect(str(stack.known.order_database_url)) as conn:
                found = conn.execute("SELECT count(*) FROM sagas WHERE state = 'paid' AND attempts >= 5").fetchone()
            return found == (len(answers),)

        polling.eventually(asked_for, 60)
        stack.mailbox_behaves()
        states = [stack.reached(answer["saga_id"], "notified", "notify_failed", "compensated")["state"] for answer in answers]

        assert states == ["notified"] * len(answers)
        assert [len(stack.mails(answer["user_email"])) for answer in answers] == [1] * len(answers)
        assert stack.verified().ok
