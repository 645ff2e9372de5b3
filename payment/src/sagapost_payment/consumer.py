"""Which handler answers which message on payment's queue."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeVar

from sagapost_chassis import consuming, db
from sagapost_contracts import events
from sagapost_payment import handlers, provider

CONCURRENCY: Final = 64  # a provider takes about a second per charge

M = TypeVar("M", bound=events.Message)


def routes(pool: db.Pool, psp: provider.Provider, *, max_unanswered: int) -> Mapping[type[events.Message], consuming.Handler]:
    """Build the table from message type to handler."""
    return {
        events.OrderCreated: _typed(events.OrderCreated, partial(handlers.on_order_created, pool, psp, max_unanswered=max_unanswered)),
        events.CancelPayment: _typed(events.CancelPayment, partial(handlers.on_cancel_payment, pool, psp)),
    }


def _typed(cls: type[M], handle: Callable[[consuming.Delivery, M], Awaitable[None]]) -> consuming.Handler:
    async def handler(delivery: consuming.Delivery) -> None:
        if not isinstance(delivery.message, cls):
            raise TypeError(f"{delivery.type} arrived as {type(delivery.message).__name__}")
        await handle(delivery, delivery.message)

    return handler
