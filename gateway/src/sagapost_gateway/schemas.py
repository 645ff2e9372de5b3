"""The words of the HTTP API for readers of the OpenAPI document; nothing decodes with them, the order service judges bodies."""

from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

_MONEY: Final = r"^(0|[1-9][0-9]{0,9})(\.[0-9]{1,2})?$"
_PRICE: Final = r"^([1-9][0-9]{0,9}(\.[0-9]{1,2})?|0\.(0[1-9]|[1-9][0-9]?))$"  # as _MONEY, but not nothing
_BREAKS: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_LINE: Final = rf"^[^{_BREAKS}]*[^\s\ufeff{_BREAKS}][^{_BREAKS}]*$"
_UUID: Final = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"

Identifier = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Money = Annotated[str, Meta(pattern=_MONEY, description="A decimal string with at most two places.", examples=["1299.99"])]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", description="ISO 4217", examples=["USD"])]
Instant = Annotated[str, Meta(description="RFC 3339 in UTC", extra_json_schema={"format": "date-time"})]
SagaId = Annotated[str, Meta(pattern=_UUID, extra_json_schema={"format": "uuid"})]
OrderStatus = Literal["pending", "paid", "completed", "cancelling", "cancelled", "attention"]
SagaState = Literal["created", "paid", "notified", "compensating", "compensated", "notify_failed", "compensation_failed"]
SAGA_STATES: Final[tuple[str, ...]] = get_args(SagaState)


class CheckoutItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One product of the cart; the same product may stand in a cart once."""

    product_id: Identifier
    quantity: Annotated[int, Meta(ge=1, le=100)]
    price: Annotated[
        Annotated[str, Meta(pattern=_PRICE, max_length=13)] | Annotated[float, Meta(gt=0, lt=10**10, multiple_of=0.01)],
        Meta(description="What the customer saw: more than 0, at most two places and 12 digits. It is compared, never charged."),
    ]


class CheckoutRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cart to buy."""

    user_id: Identifier
    user_email: Annotated[
        str,
        Meta(max_length=254, description="One plain ASCII address, local@domain.tld.", extra_json_schema={"format": "email"}),
    ]
    items: Annotated[list[CheckoutItem], Meta(min_length=1, max_length=50)]
    # unset, and not a default: generators of clients take a property with a default for one that is always there
    payment_method: (
        Annotated[
            str,
            Meta(
                pattern="^[A-Za-z0-9_-]{1,64}$",
                description="A token of the payment provider, never a card number; `pm_card_ok` when it is left out.",
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an order, at the price that is charged."""

    product_id: Identifier
    quantity: int
    price: Money


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go on."""

    saga: str
    events: str
    order: str
    cancel: str


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """An order as it was accepted; its saga tells how far it has come."""

    id: Identifier
    user_id: Identifier
    user_email: str
    status: OrderStatus
    currency: Currency
    total_amount: Money
    items: list[Item]
    processing_duration_ms: Annotated[int, Meta(description="How long accepting the order took, in milliseconds.")]
    created_at: Instant
    saga_id: SagaId
    links: Links


class Order(Placed, frozen=True, kw_only=True):
    """An order as it is now."""

    updated_at: Instant


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the calling client's own orders, the newest first."""

    items: list[Order]
    next_cursor: Annotated[str | None, Meta(description="Send it as `cursor` for the next page; null on the last one.")]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Where an order stands."""

    id: Identifier
    status: OrderStatus
    saga_id: SagaId
    saga_state: SagaState


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a saga's stream, in the words of server-sent events."""

    event: Literal["transition", "end"]
    data: Annotated[str, Meta(description="JSON: for `transition` the row of the history, for `end` the saga's last state.")]
    id: Annotated[str | None, Meta(description="The row's `seq`, for Last-Event-ID.")] = None
    retry: Annotated[int | None, Meta(description="After how many milliseconds to come again when the stream breaks.")] = None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step; `at` is when it ended, `ms` how long it took. `email` is the receipt, `cancellation` the mail of a cancelled order."""

    name: Literal["order", "payment", "email", "cancellation"]
    state: Literal["pending", "running", "done", "failed", "refunded", "skipped"]
    at: Instant | None = None
    ms: int | None = None
    attempts: int | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the saga's history."""

    seq: int
    before: str = msgspec.field(name="from")
    to: str
    event: str
    at: Instant
    outcome: Annotated[Literal["applied", "ignored"], Meta(description="`ignored`: it was heard, and changed nothing.")]
    source: Annotated[
        Literal["event", "deadline", "http", "operator"],
        Meta(description="Who moved the saga: a message, the clock, a customer or an operator."),
    ]
    actor: Annotated[str | None, Meta(description="The client that did; an operator's name stands under /api/ops only.")] = None
    reason: Annotated[str | None, Meta(description="A code, or under /api/ops what an operator wrote.")] = None
    mail: Annotated[str | None, Meta(description="The mail that was sent, failed or is asked for: receipt or cancellation.")] = None


class Saga(msgspec.Struct, frozen=True, kw_only=True):
    """How far an order has come, and every change on the way."""

    saga_id: SagaId
    order_id: Identifier
    state: SagaState
    version: Annotated[int, Meta(ge=1, description="Grows with every change; the ETag.")]
    done: bool
    attention: Annotated[str | None, Meta(description="Why an operator should look, or null.")]
    reason: Annotated[str | None, Meta(description="Why the order was not completed, or null.")]
    captured: Money
    refunded: Money
    currency: Currency
    deadline_at: Instant | None
    created_at: Instant
    updated_at: Instant
    steps: list[Step]
    history: list[Change]
    trace_id: str | None


class ListedSaga(msgspec.Struct, frozen=True, kw_only=True):
    """A saga as an operator's list shows it."""

    saga_id: SagaId
    order_id: Identifier
    state: SagaState
    version: Annotated[int, Meta(ge=1)]
    done: bool
    stuck: Annotated[bool, Meta(description="Nothing will move it in time.")]
    attention: str | None
    reason: str | None
    attempts: int
    amount: Money
    captured: Money
    refunded: Money
    currency: Currency
    deadline_at: Instant | None
    created_at: Instant
    updated_at: Instant


class Sagas(msgspec.Struct, frozen=True, kw_only=True):
    """A page of sagas."""

    sagas: list[ListedSaga]
    next_cursor: Annotated[str | None, Meta(description="The next page's `cursor`, or null when there is no next page.")]


class Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an operator acts."""

    reason: Annotated[str, Meta(max_length=500, pattern=_LINE, description="One line, for the history.")]


class RefundAction(Action, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an operator notes a refund, and where it can be found."""

    reference: Annotated[str, Meta(max_length=100, pattern=_LINE, description="The bank's or the provider's name for the refund.")]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`failing` and `degraded` name dependencies; in mode "development" a call needs no key."""

    service: str
    mode: Literal["development", "production"]
    status: Literal["ok", "unready"]
    failing: list[str] = []
    degraded: list[str] = []


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One wrong field."""

    pointer: Annotated[str, Meta(description="A JSON pointer, RFC 6901.", examples=["/items/0/quantity"])]
    code: str
    current_price: Annotated[Money, Meta(description="With price-changed: what the product costs now.")] | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Every error answer, RFC 9457."""

    type: Annotated[str, Meta(pattern="^/problems/[a-z-]+$", examples=["/problems/validation-failed"])]
    title: str
    status: int
    detail: str
    instance: str
    trace_id: str | None = None
    errors: list[Fault] = []


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the catalogue."""

    id: Identifier
    name: str
    description: str
    price: Money
    currency: Currency
