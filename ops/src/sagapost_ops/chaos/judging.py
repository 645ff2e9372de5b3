"""Compares what the customers were told with what the databases, the provider and the mailbox say; it changes nothing."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec

from sagapost_ops import client, evidence, parts, targets
from sagapost_ops.chaos import rig
from sagapost_ops.invariants import orders
from sagapost_ops.load import journal

# No process of ours has imported what it needs sooner, so that it sends nothing before: a mail that is accepted within this time of a start
# was handed over by the one that had just died. In seed 102 one was taken 3.3 s before its supposed sender was up.
STARTS_S: Final = 0.3
_PAGE: Final = 1000
_SHOWN: Final = 10
_ENDED: Final = frozenset({"notified", "compensated"})


class Mail(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One accepted mail."""

    message_id: str = msgspec.field(name="MessageID")
    created: datetime


class _Mails(msgspec.Struct, frozen=True, kw_only=True):
    total: int
    messages: tuple[Mail, ...]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How often each promise was broken, and a sentence for the first of each kind.

    A duplicate mail is explained when the process that sent the first copy died before the second, and each death explains one: a
    process of the campaign has one mail in hand. `mail_gap_deaths` are the deaths that explain one. `invented` orders have a key that
    no customer sent; `contradicted` keys were refused and have an order, or were answered with two.
    """

    lost: int
    invented: int
    contradicted: int
    unknown: int
    double_charges: int
    double_refunds: int
    duplicate_mails: int
    unexplained_mails: int
    mail_gap_deaths: int
    reasons: tuple[str, ...]


def judge(where: targets.Targets, lines: Sequence[journal.Line], lives: Sequence[rig.Life]) -> Verdict:
    """Look at everything, once all of it is at rest.

    Raises:
        UnfitError: a database or a ledger cannot be asked.

    """
    told = _told(lines)
    with evidence.gathered(where) as found:
        keys = {key.key: key.order_id for key in orders.keys(found)}
        sagas = {str(saga.id): saga for part in parts.walk(found) for saga in part.sagas.values()}
        movements = list(itertools.chain.from_iterable((found.movements or {}).values()))
        charges, refunds = (_surplus(movements, kind) for kind in ("charge", "refund"))
    lost: list[str] = []
    contradicted = [f"{key} was answered with {len(answers)} orders" for key, answers in told.items() if len(answers) > 1]
    for key, answers in told.items():
        for order_id, saga_id in answers:
            saga = sagas.get(saga_id)
            if keys.get(key) != order_id or saga is None or saga.order_id != order_id:
                lost.append(f"{key} was answered with order {order_id} of saga {saga_id}, which is not there")
            elif saga.state not in _ENDED:
                lost.append(f"order {order_id} of {key} is {saga.state}")
    contradicted += [f"{key} was refused and has an order" for key in _refused(lines) if key in keys]
    sent = {line.key for line in lines}
    of_keys = set(keys.values())
    invented = [f"nobody sent {key}" for key in keys if key not in sent]
    invented += [f"order {saga.order_id} has no key" for saga in sagas.values() if saga.order_id not in of_keys]
    unknown = [f"{key} is unknown to this day" for key in _unknown(lines)]
    doubled, unexplained, deaths = copies(_mails(where), [life for life in lives if life.name == "email"])
    groups = (lost, contradicted, invented, unknown, charges, refunds, unexplained)
    return Verdict(
        lost=len(lost),
        invented=len(invented),
        contradicted=len(contradicted),
        unknown=len(unknown),
        double_charges=len(charges),
        double_refunds=len(refunds),
        duplicate_mails=doubled,
        unexplained_mails=len(unexplained),
        mail_gap_deaths=deaths,
        reasons=tuple(sentence for group in groups for sentence in group[:_SHOWN]),
    )


def _told(lines: Iterable[journal.Line]) -> dict[str, set[tuple[int, str]]]:
    """Give the orders that each key was answered with."""
    told: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for line in lines:
        if line.what == "checkout" and line.outcome == "ok" and line.order_id is not None and line.saga_id is not None:
            told[line.key].add((line.order_id, line.saga_id))
    return told


def _last(lines: Iterable[journal.Line]) -> dict[str, str]:
    return {line.key: line.outcome for line in lines if line.what == "checkout"}


def _refused(lines: Sequence[journal.Line]) -> list[str]:
    return [key for key, outcome in _last(lines).items() if outcome == "refused"]


def _unknown(lines: Sequence[journal.Line]) -> list[str]:
    return [key for key, outcome in _last(lines).items() if outcome == "unknown"]


def _surplus(movements: Iterable[evidence.Movement], kind: str) -> list[str]:
    counted = Counter(movement.reference for movement in movements if movement.kind == kind)
    return [f"saga {reference} has {number} {kind}s" for reference, number in counted.items() for _ in range(number - 1)]


def copies(mails: Iterable[Mail], lives: Sequence[rig.Life]) -> tuple[int, list[str], int]:
    """Count second copies, name those that no death of the email process explains, and count the deaths behind the others."""
    times: dict[str, list[float]] = defaultdict(list)
    for mail in mails:
        times[mail.message_id].append(mail.created.timestamp())
    pairs = [(message_id, pair) for message_id, at in times.items() for pair in itertools.pairwise(sorted(at))]
    unexplained: list[str] = []
    deaths: set[float] = set()
    for message_id, (first, second) in pairs:
        sender = next((life for life in reversed(lives) if life.started_at + STARTS_S <= first), None)
        if sender is None or not sender.ended_at or sender.ended_at >= second:
            unexplained.append(f"{message_id} was sent twice by one process")
        elif sender.ended_at in deaths:
            unexplained.append(f"{message_id} is the second mail that came twice by one death")
        else:
            deaths.add(sender.ended_at)
    return len(pairs), unexplained, len(deaths)


def _mails(where: targets.Targets) -> list[Mail]:
    found: list[Mail] = []
    with client.Client(targets.need(where, "mailbox_url")) as mailbox:
        while True:
            page = mailbox.get(f"/api/v1/messages?start={len(found)}&limit={_PAGE}", _Mails)
            found.extend(page.messages)
            if not page.messages or len(found) >= page.total:
                return found
