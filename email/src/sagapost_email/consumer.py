"""Which handler answers which message on email's queue."""

from collections.abc import Mapping
from functools import partial

from sagapost_chassis import consuming
from sagapost_contracts import events
from sagapost_email import handlers


def routes(outlets: handlers.Outlets) -> Mapping[type[events.Message], consuming.Handler]:
    """Build the table from message type to handler."""
    return {
        events.PaymentProcessed: consuming.typed(events.PaymentProcessed, partial(handlers.on_payment_processed, outlets)),
        events.OrderCancelled: consuming.typed(events.OrderCancelled, partial(handlers.on_order_cancelled, outlets)),
        events.RequestNotification: consuming.typed(events.RequestNotification, partial(handlers.on_request_notification, outlets)),
    }
