"""Products, orders and the saga's row as Structs, and what makes a checkout acceptable; it must not know a database or HTTP."""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Final
from uuid import UUID

import msgspec

from sagapost_chassis.errors import FieldError
from sagapost_contracts import addresses, cards, events, money
from sagapost_order import errors, strictjson

MAX_ID: Final = 2**63 - 1
MAX_LINES: Final = 50
MAX_QUANTITY: Final = 100
PAGE_LINES: Final = 100  # a page of the list of orders ends when it holds so many lines
DEFAULT_PAYMENT_METHOD: Final = "pm_card_ok"
KEYS_KEPT: Final = timedelta(days=7)

_SEARCHED_STRINGS: Final = 200  # of a body that is refused anyhow, to name the reason
_SEARCHED_CHARACTERS: Final = 500
_FAULT: Final = re.compile(r"\A(?P<text>.*?)(?: - at `\$(?P<path>[^`]*)`)?\Z", re.DOTALL)
_FIELD: Final = re.compile(r"\AObject (missing|contains)[a-z ]*field `(.*)`\Z", re.DOTALL)
_WORD: Final = re.compile(r"\A[A-Za-z_]{1,40}\Z")

Id = Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]


class CheckoutItem(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a cart; `price` is what the customer saw, never what is charged."""

    product_id: int
    quantity: int
    price: Decimal


class CheckoutRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A checkout that is well formed; whether its prices hold, the catalogue knows."""

    user_id: int
    user_email: str
    items: tuple[CheckoutItem, ...]
    payment_method: str


class IdempotencyKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a client calls one attempt, and the fingerprint of the body it sent."""

    client: str
    key: str
    fingerprint: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered to a checkout that began an order: kept with its key, and given again as it is."""

    status: int
    location: str
    body: bytes
    replayed: bool = False


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the catalogue."""

    id: int
    name: str
    description: str
    price: Decimal
    currency: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order with its lines and where its saga stands."""

    id: int
    user_id: int
    user_email: str
    status: str
    currency: str
    total_amount: Decimal
    processing_duration_ms: int
    created_at: datetime
    updated_at: datetime
    saga_id: UUID
    saga_state: str
    items: tuple[events.Line, ...]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the saga knows beside its state; the sums and the payment's version only grow.

    `cancel_noted`: why the order is cancelled as soon as the outcome of its receipt is known.
    """

    captured: Decimal = Decimal("0.00")
    refunded: Decimal = Decimal("0.00")
    payment_version: int = 0
    notified_at: datetime | None = None
    cancellation_sent_at: datetime | None = None
    reason: str | None = None
    attempts: int = 0
    attention: str | None = None
    deadline_at: datetime | None = None
    deadline_kind: str | None = None
    cancel_noted: str | None = None


class Saga(Facts, frozen=True, kw_only=True):
    """The saga's row; `version` is the seq of its newest history row.

    `pay_before`: the end of the time to pay as it was at the checkout; a time that began anew ends later. `receipt_until`: until then
    the email service may be sending the receipt.
    """

    id: UUID
    order_id: int
    state: str
    version: int
    amount: Decimal
    currency: str
    trace_id: str | None
    pay_before: datetime
    created_at: datetime
    updated_at: datetime
    receipt_until: datetime | None = None


class HistoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a saga's append-only history; `facts` are all facts after it, `mail` the template of the mail that it is about."""

    seq: int
    from_state: str
    to_state: str
    event: str
    outcome: str
    source: str
    actor: str | None
    reason: str | None
    facts: Facts
    at: datetime
    mail: str | None = None


class _Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    product_id: Id
    quantity: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUANTITY)]
    price: object  # msgspec's own Decimal lets NaN, exponents and underscores through


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user_id: Id
    user_email: str
    items: Annotated[tuple[_Item, ...], msgspec.Meta(min_length=1, max_length=MAX_LINES)]
    payment_method: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")] = DEFAULT_PAYMENT_METHOD


def parse_checkout(body: bytes) -> CheckoutRequest:
    """Read a request body.

    Raises:
        MalformedRequestError: it is not one strict JSON document.
        RequestInvalidError: it is not a checkout; the errors point at the fields.

    """
    tree = strictjson.read(body)
    try:
        raw = msgspec.convert(tree, _Body)
    except msgspec.ValidationError as exc:
        raise _refused(tree, [field_error(str(exc))]) from exc
    prices = [_price(item.price) for item in raw.items]
    faults = [*_faults(raw, prices)]
    if faults:
        raise _refused(tree, faults)
    if holds_card_number(raw.user_email) or holds_card_number(raw.payment_method):  # the only texts, and both are short by now
        raise _card_number()
    return CheckoutRequest(
        user_id=raw.user_id,
        user_email=raw.user_email,
        items=tuple(
            CheckoutItem(product_id=item.product_id, quantity=item.quantity, price=price)
            for item, price in zip(raw.items, prices, strict=True)
            if price is not None
        ),
        payment_method=raw.payment_method,
    )


def fingerprint(request: CheckoutRequest) -> bytes:
    """Digest a request as it was understood: how numbers, fields and spaces were written makes no difference.

    Keys outlive releases: a field that is added must stay out of the digest while it has its default.
    """
    return hashlib.sha256(msgspec.json.encode(request)).digest()


def is_email(text: str) -> bool:
    """Return whether this is one plain ASCII address of the form local@domain.tld."""
    return addresses.is_email_address(text)


def holds_card_number(text: str) -> bool:
    """Return whether a card number stands in the text."""
    return cards.holds_card_number(text)


def price_order(items: Sequence[CheckoutItem], catalogue: Mapping[int, Product]) -> tuple[tuple[events.Line, ...], Decimal]:
    """Make the order's lines and total from the catalogue's prices.

    Raises:
        UnknownProductError: something is not in the catalogue.
        PriceChangedError: the customer saw other prices.
        RequestInvalidError: the total does not fit into NUMERIC(12,2).

    """
    unknown = tuple(
        FieldError(pointer=f"/items/{index}/product_id", code="unknown_product")
        for index, item in enumerate(items)
        if item.product_id not in catalogue
    )
    if unknown:
        raise errors.UnknownProductError("The cart holds a product that is not in the catalogue.", errors=unknown)
    changed = tuple(
        errors.CurrentPrice(pointer=f"/items/{index}/price", code="price_changed", current_price=str(catalogue[item.product_id].price))
        for index, item in enumerate(items)
        if item.price != catalogue[item.product_id].price
    )
    if changed:
        now = ", ".join(f"{error.pointer} is now {error.current_price}" for error in changed)
        raise errors.PriceChangedError(f"The catalogue has another price: {now}.", errors=changed)
    lines = tuple(
        events.Line(product_id=item.product_id, name=catalogue[item.product_id].name, quantity=item.quantity, price=item.price)
        for item in items
    )
    total = sum((line.price * line.quantity for line in lines), Decimal(0))
    try:
        return lines, money.parse_amount(total)
    except ValueError as exc:
        raise _invalid([FieldError(pointer="/items", code="total_too_large")]) from exc


def _faults(raw: _Body, prices: Sequence[Decimal | None]) -> list[FieldError]:
    found: list[FieldError] = []
    if not is_email(raw.user_email):
        found.append(FieldError(pointer="/user_email", code="not_an_email_address"))
    found += [FieldError(pointer=f"/items/{index}/price", code="not_a_price") for index, price in enumerate(prices) if price is None]
    seen: set[int] = set()
    for index, item in enumerate(raw.items):
        if item.product_id in seen:
            found.append(FieldError(pointer=f"/items/{index}/product_id", code="duplicate_product"))
        seen.add(item.product_id)
    return found


def _price(value: object) -> Decimal | None:
    """Read a price above zero from a string or a number as it was written; None when it is no price."""
    if isinstance(value, strictjson.Number):
        value = value.text
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    try:
        amount = money.parse_amount(value)
    except ValueError:
        return None
    return amount if amount > 0 else None


def _refused(tree: object, faults: Sequence[FieldError]) -> errors.RequestInvalidError:
    """Name the faults, or the card number that stands among the first texts: the search of a body that is refused must cost little."""
    left = _SEARCHED_CHARACTERS
    for text in itertools.islice(strictjson.strings(tree), _SEARCHED_STRINGS):
        if holds_card_number(text[:left]):
            return _card_number()
        left -= min(left, len(text))
    return _invalid(faults)


def _card_number() -> errors.RequestInvalidError:
    # without a pointer: the number may stand in a field's name
    return errors.RequestInvalidError(
        "Card numbers are not accepted; send a payment method's token.", errors=(FieldError(pointer="", code="card_number"),)
    )


def _invalid(faults: Sequence[FieldError]) -> errors.RequestInvalidError:
    return errors.RequestInvalidError("The request is not a checkout; `errors` points at what is wrong.", errors=tuple(faults))


def field_error(sentence: str) -> FieldError:
    """Turn msgspec's sentence into a pointer and a code; a field's name is only repeated when it is a plain word."""
    match = _FAULT.match(sentence)
    text, path = (match["text"], match["path"] or "") if match else (sentence, "")
    pointer = re.sub(r"\[(\d+)\]", r"/\1", path).replace(".", "/")
    if field := _FIELD.match(text):
        code = "missing" if field[1] == "missing" else "unknown_field"
        return FieldError(pointer=f"{pointer}/{field[2]}" if _WORD.match(field[2]) else pointer, code=code)
    if "length" in text or ">=" in text or "<=" in text:
        return FieldError(pointer=pointer, code="out_of_range")
    return FieldError(pointer=pointer, code="wrong_format" if "regex" in text else "wrong_type")
