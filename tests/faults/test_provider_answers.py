"""Whatever the payment provider answers, or does not, the saga ends truthfully and nothing is charged twice."""

from typing import Any, Final

import pytest
from faults.stack import Stack

from sagapost_sandbox.testing import polling

CASES: Final = {
    "pm_card_ok": ("notified", ["charge"]),
    "pm_flaky": ("notified", ["charge"]),
    "pm_error_after_charge": ("notified", ["charge"]),
    "pm_late": ("notified", ["charge"]),
    "pm_card_declined": ("compensated", []),
    "pm_card_insufficient_funds": ("compensated", []),
    "pm_no_such_card": ("compensated", []),
    "pm_hang": ("compensated", []),
    "pm_poison": ("compensated", []),
}


@pytest.fixture(scope="module")
def checkouts(stack: Stack) -> dict[str, dict[str, Any]]:
    """Start one checkout per payment method at once: the slow ones climb the retry ladder side by side."""
    answers = {token: stack.checkout(token) for token in CASES}
    assert {status for status, _ in answers.values()} == {202}
    return {token: answer for token, (_, answer) in answers.items()}


@pytest.mark.parametrize("token", CASES)
def test_a_payment_ends_truthfully(token: str, checkouts: dict[str, dict[str, Any]], stack: Stack) -> None:
    """The state says what the provider's own ledger says, and the customer gets exactly one mail."""
    answer, (state, moved) = checkouts[token], CASES[token]

    saga = stack.ended(answer["saga_id"], 90)

    assert saga["state"] == state
    assert [entry["kind"] for entry in stack.movements(answer["saga_id"])] == moved
    assert saga["captured"] == ("1299.99" if moved else "0.00")
    (mail,) = polling.eventually(lambda: stack.mails(answer["user_email"]))
    assert mail["MessageID"].startswith("receipt-" if moved else "cancellation-")
    _, order = stack.call("GET", f"/api/orders/{answer['id']}")
    assert order["status"] == ("completed" if moved else "cancelled")


def test_every_invariant_holds_after_all_of_them(checkouts: dict[str, dict[str, Any]], stack: Stack) -> None:
    """Once all have ended, databases, broker, provider and mailbox agree."""
    for answer in checkouts.values():
        stack.ended(answer["saga_id"], 90)

    stack.verified()
