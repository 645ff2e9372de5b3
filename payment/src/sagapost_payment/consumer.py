"""Which handler answers which message on payment's queue."""

from collections.abc import Mapping
from functools import partial
from typing import Final

from sagapost_chassis import consuming, db
from sagapost_contracts import events
from sagapost_payment import domain, handlers, provider

CONCURRENCY: Final = 64  # a provider takes about a second per charge
# Seventeen minutes: past the usual pay window of fifteen, so that an order whose provider answers errors all along ends expired
# and not as a dead letter. A provider that is away costs no attempt.
RETRY_DELAYS_S: Final = "1,5,30" + ",120" * 8


def routes(pool: db.Pool, psp: provider.Provider, terms: domain.Terms) -> Mapping[type[events.Message], consuming.Handler]:
    """Build the table from message type to handler."""
    return {
        events.OrderCreated: consuming.typed(events.OrderCreated, partial(handlers.on_order_created, pool, psp, terms=terms)),
        events.CancelPayment: consuming.typed(events.CancelPayment, partial(handlers.on_cancel_payment, pool, psp, terms=terms)),
    }
