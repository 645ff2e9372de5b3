"""Invariant 5: whoever paid got one receipt, whoever was cancelled one cancellation mail, and nobody else anything."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
from psycopg import sql

from sagapost_ops import clocks, database, erasing, evidence, parts
from sagapost_ops.invariants.outcome import Expectations, Outcome, Tally, outcome
from sagapost_ops.outbox import queries

# finished by an operator without its receipt; one that was reported all the same must be there
_WAIVED: Final = """
SELECT s.id::text FROM sagas AS s
 WHERE s.id = ANY(%(ids)s::uuid[]) AND s.notified_at IS NULL AND EXISTS (
       SELECT FROM saga_history AS h
        WHERE h.saga_id = s.id AND h.event = 'OperatorWaiveNotify' AND h.outcome = 'applied' AND h.to_state = 'notified')
"""
# their announcement may have left the ring; the history says that there was one
_OLD: Final = sql.SQL("""
WITH {ring}
SELECT s.id::text FROM sagas AS s CROSS JOIN ring
 WHERE s.id = ANY(%(ids)s::uuid[]) AND s.created_at < ring.whole_since
   AND EXISTS (SELECT FROM saga_history AS h WHERE h.saga_id = s.id AND h.to_state = 'compensated' AND h.from_state <> 'compensated')
""").format(ring=queries.RING)
# whose end nobody was told of
_UNTOLD: Final = sql.SQL("""
WITH {ring}
SELECT format('saga %%s is compensated and its cancellation was never announced', s.id) FROM sagas AS s CROSS JOIN ring
 WHERE s.state = 'compensated' AND s.created_at >= ring.whole_since AND {looked_at}
   AND NOT EXISTS (SELECT FROM outbox AS o WHERE o.correlation_id = s.id::text AND o.type = 'OrderCancelled')
 ORDER BY s.id LIMIT 100
""").format(ring=queries.RING, looked_at=evidence.LOOKED_AT)
# The first row that takes a paid order back. When EmailSent stands before it in the history, the receipt was in time; no clock is compared.
_DECIDED: Final = """
SELECT d.saga_id, d.at, EXISTS (
       SELECT FROM saga_history AS e
        WHERE e.saga_id = d.saga_id AND e.seq < d.seq AND e.event = 'EmailSent' AND coalesce(e.mail, 'receipt') = 'receipt') AS is_sent
  FROM (SELECT saga_id, min(seq) AS seq, min(at) AS at FROM saga_history
         WHERE saga_id = ANY(%(ids)s::uuid[]) AND to_state IN ('compensating', 'compensated')
           AND from_state NOT IN ('compensating', 'compensated', 'compensation_failed')
         GROUP BY saga_id) AS d
"""
_REFUSED: Final = "SELECT DISTINCT saga_id::text FROM saga_history WHERE saga_id = ANY(%(ids)s::uuid[]) AND event = 'EmailFailed'"


def receipts(found: parts.Part, expected: Expectations) -> Outcome | None:
    """Check that every notified order has a receipt, sent to its customer, and that no unpaid order has one."""
    if found.mails is None:
        return None
    sent = [mail for mail in found.mails if mail.template == "receipt"]
    written = {mail.saga_id for mail in sent}
    waived = set(found.sentences(found.order, _WAIVED))
    captured = {str(entry.saga_id) for entry in found.ledger if entry.kind == "capture"}
    sagas = {str(saga_id): saga for saga_id, saga in found.sagas.items()}
    notified = [saga_id for saga_id, saga in sagas.items() if (saga.is_notified or saga.state == "notified") and saga_id not in waived]
    violations = [f"saga {saga_id} is notified and no receipt was accepted" for saga_id in notified if saga_id not in written]
    unheard = written & {saga_id for saga_id, saga in sagas.items() if not saga.is_notified} - waived
    violations.extend(f"saga {saga_id} has a receipt and has never heard of it" for saga_id in sorted(unheard))
    for mail in sent:
        if mail.saga_id not in sagas:
            violations.extend([] if expected.strangers else [f"the receipt {mail.message_id} is of no saga"])
        elif mail.saga_id not in captured:
            violations.append(f"the receipt {mail.message_id} was sent for an order that was never paid")
        elif not erasing.is_erased(sagas[mail.saga_id].user_email) and [to.address for to in mail.to] != [sagas[mail.saga_id].user_email]:
            violations.append(f"the receipt {mail.message_id} went to somebody else")
    return outcome(len(notified) + len(sent), violations)


def cancellations(found: parts.Part, expected: Expectations) -> Outcome | None:
    """Check that each announced cancellation has a mail, and nobody else has one, as far as the outbox still tells."""
    if found.mails is None:
        return None
    announced = found.announced(parts.ORDER_CANCELLED)
    old = set(found.sentences(found.order, _OLD))  # read after the announcements: the ring may turn in between
    refused = set(found.sentences(found.order, _REFUSED))
    known = {str(saga_id) for saga_id in found.sagas}
    sent = {mail.saga_id for mail in found.mails if mail.template == "cancellation"}
    violations = [f"saga {saga_id} was cancelled and no mail of it was accepted" for saga_id in sorted(announced - sent - refused)]
    unasked = sent - announced if not expected.strangers else (sent & known) - announced
    unjudged = unasked & old
    violations.extend(f"a cancellation mail was sent for saga {saga_id}, which was not cancelled" for saga_id in sorted(unasked - old))
    told = {str(saga.id) for saga in found.sagas.values() if saga.is_told}
    violations.extend(f"saga {saga_id} counts its cancellation mail as sent, and none was accepted" for saga_id in sorted(told - sent))
    violations.extend(f"saga {saga_id} has a cancellation mail and has never heard of it" for saga_id in sorted((sent & known) - told))
    return outcome(len(announced), violations, len(unjudged))


def announcements(found: evidence.Evidence, _: Expectations) -> Outcome:
    """Check that the end of each cancelled order was announced, as far as the outbox still tells."""
    return outcome(0, found.sentences(found.order, _UNTOLD))


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """When a saga first took its order back, and whether a receipt had been reported by then."""

    saga_id: UUID
    at: datetime
    is_sent: bool


def no_receipt_after_a_refund(found: evidence.Evidence, expected: Expectations) -> Outcome | None:
    """Check that no receipt was accepted after its order was taken back, but for as many as an email process died with.

    The moment is that of the order database's clock, the mail's that of the mail server; a difference of the databases' clock to this
    machine's is taken away.
    """
    if found.mails is None:
        return None
    ahead = timedelta(seconds=clocks.compare(found.order, found.payment).order_s)
    sent = {saga_id: _receipts(mails) for saga_id, mails in found.mails.items()}
    tally, both = Tally(), 0
    for page in evidence.pages(saga_id for saga_id, receipts in sent.items() if receipts):
        decisions = database.rows(found.order, _DECIDED, Decision, {"ids": parts.uuids(page)})
        both += len(decisions)
        tally.add(outcome(len(page), (late for decision in decisions for late in _late(decision, sent[str(decision.saga_id)], ahead))))
    note = f"{both} cancelled orders have a receipt" if both else None
    if len(tally.violations) <= expected.duplicate_mails:
        return outcome(tally.checked, (), note=note)
    return outcome(tally.checked, tally.violations, note=note)


def _receipts(mails: list[evidence.Mail]) -> list[evidence.Mail]:
    return sorted((mail for mail in mails if mail.template == "receipt"), key=lambda mail: mail.created)


def _late(decision: Decision, receipts: list[evidence.Mail], ahead: timedelta) -> Iterator[str]:
    for mail in receipts[1:] if decision.is_sent else receipts:
        if mail.created + ahead > decision.at:
            yield f"the receipt {mail.message_id} was accepted {mail.created + ahead - decision.at} after the refund was decided"


def duplicates(found: evidence.Evidence, expected: Expectations) -> Outcome | None:
    """Check that no more mails came twice than processes crashed between the server's 250 and the acknowledgement."""
    if found.mails is None:
        return None
    known = {str(saga_id) for saga_id in found.existing(parts.uuids(found.mails))}
    copies = Counter(mail.message_id for saga_id in known for mail in found.mails[saga_id])
    twice = {message_id: number for message_id, number in copies.items() if number > 1}
    surplus = sum(twice.values()) - len(twice)
    if surplus <= expected.duplicate_mails:
        return outcome(len(copies), ())
    return outcome(len(copies), (f"{message_id} was sent {number} times" for message_id, number in sorted(twice.items())))
