"""Which message goes to which handler on order_updates_queue."""

import functools

from sagapost_chassis import consuming, db
from sagapost_contracts import events
from sagapost_order import moves, states


def routes(pool: db.Pool, policy: states.Policy) -> dict[type[events.Message], consuming.Handler]:
    """Give a handler for every type that the queue is bound to: all of them go through the saga's table."""
    on_event = functools.partial(moves.on_event, pool, policy)
    return dict.fromkeys(
        (
            events.PaymentProcessed,
            events.PaymentFailed,
            events.PaymentVoided,
            events.PaymentRefunded,
            events.RefundFailed,
            events.EmailSent,
            events.EmailFailed,
        ),
        on_event,
    )
