"""Which handler answers which message on email's queue."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

from sagapost_chassis import consuming
from sagapost_contracts import events
from sagapost_email import handlers

M = TypeVar("M", bound=events.Message)


def routes(outlets: handlers.Outlets) -> Mapping[type[events.Message], consuming.Handler]:
    """Build the table from message type to handler."""
    return {
        events.PaymentProcessed: _typed(events.PaymentProcessed, partial(handlers.on_payment_processed, outlets)),
        events.OrderCancelled: _typed(events.OrderCancelled, partial(handlers.on_order_cancelled, outlets)),
        events.RequestNotification: _typed(events.RequestNotification, partial(handlers.on_request_notification, outlets)),
    }


def _typed(cls: type[M], handle: Callable[[consuming.Delivery, M], Awaitable[None]]) -> consuming.Handler:
    async def handler(delivery: consuming.Delivery) -> None:
        if not isinstance(delivery.message, cls):
            raise TypeError(f"{delivery.type} arrived as {type(delivery.message).__name__}")
        await handle(delivery, delivery.message)

    return handler
