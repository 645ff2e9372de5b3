"""The provider's books: charges, refunds and remembered answers, on disk before they count; knows no HTTP and no misbehaviour."""

import contextlib
import datetime as dt
import hashlib
import pathlib
import uuid
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Final

import msgspec

from sagapost_contracts import money
from sagapost_sandbox import journal
from sagapost_sandbox.provider import errors, wire

CHARGE: Final = "charge"
REFUND: Final = "refund"
_NOTHING: Final = Decimal("0.00")
_ENTRY: Final = msgspec.json.Decoder(wire.Entry)
_DECLINED: Final = msgspec.json.Decoder(wire.Declined)


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """The answer that an idempotency key got."""

    fingerprint: str
    answer: wire.Charge | wire.Refund | wire.Refusal


class Books:
    """Open them with `opened`."""

    def __init__(self, ledger: journal.Journal, refusals: journal.Journal) -> None:
        self._ledger = ledger
        self._refusals = refusals
        self.entries: list[wire.Entry] = []
        self._charges: dict[str, wire.Charge] = {}
        self._by_reference: dict[str, list[str]] = {}
        self._refunds: dict[str, list[wire.Refund]] = {}
        self._being_refunded: dict[str, Decimal] = {}
        self._remembered: dict[str, Remembered] = {}

    def remembered(self, key: str) -> Remembered | None:
        """Return the answer that a key got, None for a new key."""
        return self._remembered.get(key)

    async def charge(self, request: wire.ChargeRequest, key: str, taken: Decimal | None = None) -> wire.Charge:
        """Move the money, another amount than asked for when `taken` says so; it has moved when this returns."""
        amount = amount_of(request) if taken is None else taken
        made = wire.Charge(charge_id=_id("ch"), reference=request.reference, amount=amount, currency=request.currency, at=_now())
        await self._enter(CHARGE, made, made.charge_id, key, fingerprint(request))
        return made

    async def refund(self, request: wire.RefundRequest, key: str, *, unchecked: bool = False) -> wire.Refund:
        """Move money of a charge back; it has moved when this returns.

        Raises:
            RefusedError: there is no such charge, or less of it left (unless `unchecked`).

        """
        amount = amount_of(request)
        charge = self._charges.get(request.charge)
        if charge is None:
            raise errors.RefusedError(404, "unknown_charge", f"there is no charge {request.charge}")
        if (charge.reference, charge.currency) != (request.reference, request.currency):
            raise errors.RefusedError(422, "charge_mismatch", "the charge has another reference or currency")
        reserved = self._being_refunded.get(charge.charge_id, _NOTHING)
        if not unchecked and amount > charge.amount - self.refunded(charge.charge_id) - reserved:
            raise errors.RefusedError(422, "amount_exceeds_charge", "more than what is left of the charge")
        made = wire.Refund(
            refund_id=_id("re"), charge_id=charge.charge_id, reference=charge.reference, amount=amount, currency=charge.currency, at=_now()
        )
        self._being_refunded[charge.charge_id] = reserved + amount
        try:
            await self._enter(REFUND, made, made.refund_id, key, fingerprint(request))
        finally:
            self._being_refunded[charge.charge_id] -= amount
        return made

    async def decline(self, key: str, print_of_request: str, refusal: wire.Refusal) -> None:
        """Remember a final no."""
        await self._refusals.append(msgspec.json.encode(wire.Declined(key=key, fingerprint=print_of_request, refusal=refusal)))
        self._remembered[key] = Remembered(fingerprint=print_of_request, answer=refusal)

    def refunded(self, charge_id: str) -> Decimal:
        """Add up what has been given back of a charge."""
        return sum((refund.amount for refund in self._refunds.get(charge_id, ())), _NOTHING)

    def find(self, reference: str) -> wire.Charges:
        """Return all charges of a reference with their refunds, oldest first."""
        found = [self._charges[charge_id] for charge_id in self._by_reference.get(reference, ())]
        return wire.Charges(
            charges=tuple(
                wire.Found(
                    **msgspec.structs.asdict(charge),
                    refunded=self.refunded(charge.charge_id),
                    refunds=tuple(self._refunds.get(charge.charge_id, ())),
                )
                for charge in found
            )
        )

    async def _enter(self, kind: str, made: wire.Charge | wire.Refund, own_id: str, key: str, print_of_request: str) -> None:
        entry = wire.Entry(
            kind=kind,
            reference=made.reference,
            charge_id=made.charge_id,
            amount=made.amount,
            currency=made.currency,
            at=made.at,
            id=own_id,
            key=key,
            fingerprint=print_of_request,
        )
        await self._ledger.append(msgspec.json.encode(entry))
        self.take_in(entry)

    def take_in(self, entry: wire.Entry) -> None:
        """Count an entry that is on disk."""
        common = {"charge_id": entry.charge_id, "reference": entry.reference, "currency": entry.currency, "at": entry.at}
        answer: wire.Charge | wire.Refund
        if entry.kind == CHARGE:
            answer = self._charges[entry.id] = wire.Charge(**common, amount=entry.amount)
            self._by_reference.setdefault(entry.reference, []).append(entry.id)
        else:
            answer = wire.Refund(**common, refund_id=entry.id, amount=entry.amount)
            self._refunds.setdefault(entry.charge_id, []).append(answer)
        self.entries.append(entry)
        self._remembered[entry.key] = Remembered(fingerprint=entry.fingerprint, answer=answer)

    def take_in_refusal(self, declined: wire.Declined) -> None:
        """Remember a refusal that is on disk."""
        self._remembered[declined.key] = Remembered(fingerprint=declined.fingerprint, answer=declined.refusal)


@contextlib.asynccontextmanager
async def opened(path: pathlib.Path) -> AsyncGenerator[Books]:
    """Open the books at `path` (refusals in a file beside it) and read what is in them."""
    beside = path.with_name(path.name + ".refusals")
    async with journal.opened(path) as ledger, journal.opened(beside) as refusals:
        books = Books(ledger, refusals)
        for line in journal.read(path):
            books.take_in(_ENTRY.decode(line))
        for line in journal.read(beside):
            books.take_in_refusal(_DECLINED.decode(line))
        yield books


def fingerprint(request: wire.ChargeRequest | wire.RefundRequest) -> str:
    """Tell whether two requests are the same; the kind counts, the writing of the amount does not."""
    fields = {**msgspec.structs.asdict(request), "amount": str(amount_of(request)), "kind": type(request).__name__}
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def amount_of(request: wire.ChargeRequest | wire.RefundRequest) -> Decimal:
    """Read the amount of a request.

    Raises:
        RefusedError: it is not an amount of money above nothing.

    """
    try:
        amount = money.parse_amount(request.amount)
    except ValueError as exc:
        raise errors.RefusedError(400, "invalid_amount", str(exc)) from exc
    if amount <= 0:
        raise errors.RefusedError(400, "invalid_amount", "the amount must be above nothing")
    return amount


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
