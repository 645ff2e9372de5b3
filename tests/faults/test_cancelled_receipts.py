"""Orders that are cancelled at a random moment: what their customers are told, and when a saga says that nothing more comes."""

import concurrent.futures
import contextlib
import http.client
import os
import random
import sys
import threading
from datetime import datetime
from typing import Any

import psycopg
import pytest
from faults.stack import Stack

from sagapost_sandbox.testing import polling

# SAGAPOST_CANCELS=200 SEED=… ./sagapost test -s tests/faults/test_cancelled_receipts.py: two thousand checkouts, a tenth of them cancelled
CANCELS = int(os.environ.get("SAGAPOST_CANCELS", "12"))
CHECKOUTS = CANCELS * 10 if "SAGAPOST_CANCELS" in os.environ else CANCELS * 3
WITHIN_S = 5.0
AT_ONCE = 16
END_S = 120 + CHECKOUTS / 4
DECIDED = """
SELECT saga_id::text, min(at) FROM saga_history WHERE to_state = 'compensating' AND from_state <> 'compensating' GROUP BY saga_id
"""
VERSIONS = "SELECT id::text, version FROM sagas"


def test_no_receipt_follows_a_refund_and_the_end_is_the_end(stack: Stack) -> None:
    """No customer has a receipt that was accepted after the refund was decided; `end` is last, and so is its version."""
    seed = int(os.environ.get("SEED", str(random.SystemRandom().randrange(1_000_000))))
    sys.stdout.write(f"SEED={seed}\n")
    dice = random.Random(seed)
    stack.provider_behaves(delay_s=1)
    stack.mailbox_behaves(delay_s=2)
    moments = [dice.uniform(0, WITHIN_S) if number < CANCELS else None for number in range(CHECKOUTS)]
    dice.shuffle(moments)

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        seen = dict(pool.map(lambda moment: _shop(stack, moment), moments))
    polling.eventually(lambda: all(_is_done(stack, saga_id) for saga_id in seen), END_S)
    stack.provider_behaves()
    stack.mailbox_behaves()
    stack.verified()

    with psycopg.connect(str(stack.known.order_database_url)) as conn:
        decided: dict[str, datetime] = dict(conn.execute(DECIDED).fetchall())
        versions: dict[str, int] = dict(conn.execute(VERSIONS).fetchall())
    late = [mail for mail in stack.all_mails() if _is_receipt_after(mail, decided)]
    assert late == []
    ended = {saga_id: version for saga_id, version in seen.items() if version is not None}
    assert ended == {saga_id: versions[saga_id] for saga_id in ended}
    assert len(ended) == CANCELS
    sys.stdout.write(f"{CHECKOUTS} checkouts, {CANCELS} cancelled, {len(decided)} refunds decided, 0 receipts after one\n")


def _shop(stack: Stack, moment: float | None) -> tuple[str, int | None]:
    """Buy, cancel at a moment if there is one, and return the saga with the version at which its stream ended."""
    status, answer = stack.checkout()
    assert status == 202, answer
    if moment is None:
        return answer["saga_id"], None
    threading.Event().wait(moment)  # the random moment is the stimulus
    assert stack.cancel(answer["id"]) in {200, 202}
    return answer["saga_id"], _version_at_end(stack, answer["saga_id"])


def _version_at_end(stack: Stack, saga_id: str) -> int:
    """Follow the event stream to its `end`, and return the id of the last event; nothing may come behind `end`."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.running["gateway"].port, timeout=END_S)
    with contextlib.closing(connection):
        connection.request("GET", f"/api/sagas/{saga_id}/events")
        lines = connection.getresponse().read().decode().splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names[-1] == "end"
    assert names.count("end") == 1
    return max(int(line.removeprefix("id: ")) for line in lines if line.startswith("id: "))


def _is_done(stack: Stack, saga_id: str) -> bool:
    status, saga = stack.call("GET", f"/api/sagas/{saga_id}")
    return status == 200 and bool(saga["done"])


def _is_receipt_after(mail: dict[str, Any], decided: dict[str, datetime]) -> bool:
    template, _, rest = str(mail["MessageID"]).partition("-")
    at = decided.get(rest.partition("@")[0])
    return template == "receipt" and at is not None and datetime.fromisoformat(mail["Created"]) > at


@pytest.mark.parametrize(("created", "is_late"), [("2026-01-01T00:00:02Z", True), ("2026-01-01T00:00:00Z", False)])
def test_a_late_receipt_would_be_seen(created: str, *, is_late: bool) -> None:
    """The check above can fail: a receipt that was accepted after the refund was decided is one, an earlier one is not."""
    decided = {"saga": datetime.fromisoformat("2026-01-01T00:00:01Z")}

    assert _is_receipt_after({"MessageID": "receipt-saga@shop.example", "Created": created}, decided) is is_late
