"""Every way in which one fact of the books of a finished order can be wrong, and what `verify` has to say of it."""

AGAIN = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT shard, gen_random_uuid(), aggregate, type, routing_key, correlation_id, headers, payload, created_at
  FROM outbox WHERE correlation_id = %(saga)s::text
"""
AGAIN_FOR_NO_REASON = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT shard, gen_random_uuid(), aggregate, type, routing_key, correlation_id, '{}', payload, created_at
  FROM outbox WHERE correlation_id = %(saga)s::text
"""
CANCELLED = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
VALUES (0, gen_random_uuid(), 'order', 'OrderCancelled', 'order.order.cancelled', %(saga)s::text, '{}', '', now())
"""
NOTED = """
INSERT INTO duplicate_charges (transaction_id, order_id, amount, currency, refund_id)
VALUES (%(surplus)s, %(order_id)s, %(total)s, 'USD', 're_1')
"""
# what is wrong, where, the invariant that must say so, what it must say, and how it is made wrong
WRONG: dict[str, tuple[str, int, str, tuple[str, ...]]] = {
    "an order without a saga": (
        "order",
        1,
        "order {order_id} has 0 sagas",
        ("DELETE FROM saga_history WHERE saga_id = %(saga)s", "DELETE FROM sagas WHERE id = %(saga)s"),
    ),
    "an order that was never announced": (
        "order",
        1,
        "{saga} has told of its order under 0 ids",
        ("DELETE FROM outbox WHERE event_id = %(created)s",),
    ),
    "an order announced twice": ("order", 1, "{saga} has told of its order under 2 ids", (AGAIN,)),
    "an order whose status lags behind": (
        "order",
        1,
        "order {order_id} is pending, its saga notified",
        ("UPDATE orders SET status = 'pending' WHERE id = %(order_id)s",),
    ),
    "an order with two keys": (
        "order",
        1,
        "order {order_id} has 2 idempotency keys",
        (
            (
                "INSERT INTO idempotency_keys (client, key, fingerprint, order_id, status, location, body) "
                "SELECT client, 'other' || key, fingerprint, order_id, status, location, body "
                "FROM idempotency_keys WHERE order_id = %(order_id)s"
            ),
        ),
    ),
    "a key that leads elsewhere": (
        "order",
        1,
        "idempotency key {saga} of demo of order {order_id} sends its client to /api/sagas/1",
        ("UPDATE idempotency_keys SET location = '/api/sagas/1' WHERE order_id = %(order_id)s",),
    ),
    "a key with the answer of another order": (
        "order",
        1,
        "idempotency key {saga} of demo of order {order_id} answers with order 0 of saga {saga} for 1299.99",
        (
            (
                "UPDATE idempotency_keys SET body = convert_to(jsonb_set(convert_from(body, 'UTF8')::jsonb, '{id}', '0')::text, 'UTF8') "
                "WHERE order_id = %(order_id)s"
            ),
        ),
    ),
    "a key with half an answer": (
        "order",
        1,
        "idempotency key {saga} of demo of order {order_id} has an answer that cannot be read",
        ("UPDATE idempotency_keys SET body = substring(body FROM 1 FOR 9) WHERE order_id = %(order_id)s",),
    ),
    "a deadline that nobody kept": (
        "order",
        2,
        "saga {saga} is notify_failed, and its deadline (notify) passed 00:01:",
        (
            (
                "UPDATE sagas SET state = 'notify_failed', deadline_at = now() - interval '1 minute', deadline_kind = 'notify' "
                "WHERE id = %(saga)s"
            ),
        ),
    ),
    "a saga that is still under way": (
        "order",
        2,
        "saga {saga} is paid",
        (
            "UPDATE sagas SET state = 'paid', version = 2, deadline_at = now(), deadline_kind = 'notify' WHERE id = %(saga)s",
            "DELETE FROM saga_history WHERE saga_id = %(saga)s AND seq = 3",
        ),
    ),
    "a payment for another order": (
        "payment",
        3,
        "payment of order 999 has no such order",
        (
            (
                "INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, user_email, items, pay_before) "
                "VALUES (999, gen_random_uuid(), 'voided', 0, 'USD', '', '', '[]', now())"
            ),
        ),
    ),
    "a payment of another amount": (
        "payment",
        3,
        "order {order_id} costs 1299.99 USD, its payment 1.00 USD",
        ("UPDATE payments SET amount = 1 WHERE saga_id = %(saga)s",),
    ),
    "a payment that payment forgot": (
        "payment",
        3,
        "saga {saga} is notified and payment has never heard of it",
        ("DELETE FROM ledger WHERE order_id = %(order_id)s", "DELETE FROM payments WHERE saga_id = %(saga)s"),
    ),
    "a payment that is not finished": (
        "payment",
        3,
        "payment of order {order_id} is processing with 1 captures",
        ("UPDATE payments SET status = 'processing', look_at = now() WHERE saga_id = %(saga)s",),
    ),
    "a refund that is not finished": (
        "payment",
        3,
        "payment of order {order_id} is refunding with 1 captures and 0 refunds",
        ("UPDATE payments SET status = 'refunding', look_at = now() WHERE saga_id = %(saga)s",),
    ),
    "a payment on another charge than its ledger": (
        "payment",
        3,
        "payment of order {order_id} is charge other",
        ("UPDATE payments SET transaction_id = 'other' || order_id WHERE saga_id = %(saga)s",),
    ),
    "a cancellation without effect": (
        "payment",
        3,
        "payment of order {order_id} was to be cancelled and is captured",
        ("UPDATE payments SET cancel_requested_at = now() WHERE saga_id = %(saga)s",),
    ),
    "a command to cancel without effect": (
        "order",
        3,
        "payment of order {order_id} was to be cancelled and is captured",
        (
            (
                "INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at) VALUES "
                "(0, gen_random_uuid(), 'order', 'CancelPayment', 'order.payment.cancel_requested', %(saga)s::text, '{}', '', now())"
            ),
        ),
    ),
    "a surplus charge that the provider does not know": (
        "payment",
        3,
        "surplus charge {surplus} of saga {saga} is noted with 1299.99; the provider took 0 and gave back 0",
        (NOTED,),
    ),
    "a surplus that is the order's own charge": (
        "payment",
        3,
        "charge {charge} of saga {saga} is noted as surplus, and its payment stands on it",
        (NOTED.replace("surplus", "charge"),),
    ),
    "a capture that the ledger lacks": (
        "payment",
        3,
        "payment of order {order_id} is captured with 0 captures",
        ("DELETE FROM ledger WHERE order_id = %(order_id)s",),
    ),
    "money that our books do not have": (
        "payment",
        3,
        "saga {saga} has a charge of 1299.99 at the provider, and our ledger has none",
        ("DELETE FROM ledger WHERE order_id = %(order_id)s",),
    ),
    "money that the provider does not have": (
        "payment",
        3,
        "saga {saga} has a refund of 1299.99 in our ledger, and the provider has none",
        (
            "INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (%(order_id)s, 'refund', %(total)s, 'USD', 're')",
            "UPDATE payments SET status = 'refunded' WHERE saga_id = %(saga)s",
        ),
    ),
    "a refund nobody told the saga of": (
        "payment",
        3,
        "saga {saga} knows of 1299.99 captured, 0.00 refunded; the ledger has 1299.99, 1299.99",
        ("INSERT INTO ledger (order_id, kind, amount, currency, transaction_id) VALUES (%(order_id)s, 'refund', %(total)s, 'USD', 're')",),
    ),
    "a finished order that was not paid in full": (
        "payment",
        3,
        "order {order_id} is notified and costs 1299.99, taken is 5.00",
        ("UPDATE ledger SET amount = 5 WHERE order_id = %(order_id)s",),
    ),
    "a cancelled order whose money was kept": (
        "order",
        3,
        "order {order_id} is compensated, and 1299.99 of it was kept",
        ("UPDATE sagas SET state = 'compensated', captured = 0, refunded = 0 WHERE id = %(saga)s",),
    ),
    "another amount at the provider": (
        "payment",
        3,
        "saga {saga}: a charge of 5.00 in our ledger, of 1299.99 at the provider",
        ("UPDATE ledger SET amount = 5 WHERE order_id = %(order_id)s",),
    ),
    "another charge at the provider": (
        "payment",
        3,
        "saga {saga}: charge other in our ledger",
        ("UPDATE ledger SET transaction_id = 'other' WHERE order_id = %(order_id)s",),
    ),
    "a capture after a tombstone": (
        "payment",
        3,
        "saga {saga} was charged after PaymentVoided",
        (
            (
                "INSERT INTO outbox (id, shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at) "
                "VALUES (0, 0, gen_random_uuid(), 'order', 'PaymentVoided', 'payment.payment.voided', %(saga)s::text, '{}', '', now())"
            ),
        ),
    ),
    "two results of one payment": ("payment", 3, "saga {saga} has 2 results of its payment", (AGAIN_FOR_NO_REASON,)),
    "lines that cost something else": (
        "order",
        4,
        "order {order_id} costs 1299.99, its lines add up to 1.00",
        ("UPDATE order_items SET price = 1 WHERE order_id = %(order_id)s",),
    ),
    "a saga of another amount": (
        "order",
        4,
        "order {order_id} costs 1299.99 USD, its saga says 1.00 USD",
        ("UPDATE sagas SET amount = 1 WHERE id = %(saga)s",),
    ),
    "a receipt to somebody else": (
        "order",
        5,
        "receipt-{saga}@sagapost.example went to somebody else",
        ("UPDATE orders SET user_email = 'other@example.com' WHERE id = %(order_id)s",),
    ),
    "a receipt for nothing": (
        "payment",
        5,
        "receipt-{saga}@sagapost.example was sent for an order that was never paid",
        ("DELETE FROM ledger WHERE order_id = %(order_id)s",),
    ),
    "a cancellation nobody was told of": (
        "order",
        5,
        "saga {saga} was cancelled and no mail of it was accepted",
        (CANCELLED,),
    ),
    "a receipt that the saga never heard of": (
        "order",
        5,
        "saga {saga} has a receipt and has never heard of it",
        ("UPDATE sagas SET notified_at = NULL WHERE id = %(saga)s",),
    ),
    "a cancellation mail that was never sent": (
        "order",
        5,
        "saga {saga} counts its cancellation mail as sent, and none was accepted",
        ("UPDATE sagas SET cancellation_sent_at = now() WHERE id = %(saga)s",),
    ),
    "a cancellation that was never announced": (
        "order",
        5,
        "saga {saga} is compensated and its cancellation was never announced",
        ("UPDATE sagas SET state = 'compensated', refunded = captured WHERE id = %(saga)s",),
    ),
    "a gap in a history": (
        "order",
        6,
        "saga {saga} has version 3 and 2 history rows, from 1 to 3",
        ("DELETE FROM saga_history WHERE saga_id = %(saga)s AND seq = 2",),
    ),
    "a history that jumps": (
        "order",
        6,
        "saga {saga}, row 2: starts at paid, the row before it ended at created",
        (
            "DELETE FROM saga_history WHERE saga_id = %(saga)s AND seq = 2",
            "UPDATE saga_history SET seq = 2 WHERE saga_id = %(saga)s AND seq = 3",
            "UPDATE sagas SET version = 2 WHERE id = %(saga)s",
        ),
    ),
    "a row that was ignored and moved the saga": (
        "order",
        6,
        "saga {saga}, row 3: paid -EmailSent-> notified is no legal edge",
        ("UPDATE saga_history SET outcome = 'ignored' WHERE saga_id = %(saga)s AND seq = 3",),
    ),
    "a saga that its history does not lead to": (
        "order",
        6,
        "saga {saga} is notified (captured 2000.00, refunded 0.00), its history ends at notified (1299.99, 0.00)",
        ("UPDATE sagas SET captured = 2000 WHERE id = %(saga)s",),
    ),
    "a sum that shrinks": (
        "order",
        6,
        "saga {saga}, row 3 takes back what an earlier row knew",
        ("""UPDATE saga_history SET facts = facts || '{"captured": "5000.00"}' WHERE saga_id = %(saga)s AND seq = 2""",),
    ),
    "a message applied twice": (
        "order",
        6,
        "saga {saga} has applied PaymentProcessed {processed} 2 times",
        (
            (
                "INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, facts, at) "
                "SELECT saga_id, 4, 'notified', 'notified', event, 'ignored', message_id, source, facts, at "
                "FROM saga_history WHERE saga_id = %(saga)s AND seq = 2"
            ),
        ),
    ),
    "an event that payment never saw": (
        "payment",
        7,
        "message {created} was published and payment_service_queue never processed it",
        ("DELETE FROM inbox WHERE message_id = %(created)s",),
    ),
    "an event that the saga never saw": (
        "order",
        7,
        "message {processed} was published and order_updates_queue never processed it",
        ("DELETE FROM inbox WHERE message_id = %(processed)s",),
    ),
    "an effect without its inbox row": (
        "order",
        7,
        "saga {saga} shows EmailSent {sent}, which was not taken in",
        ("DELETE FROM inbox WHERE message_id = %(sent)s",),
    ),
    "an inbox row without its effect": (
        "order",
        7,
        "EmailSent {other} was taken in, and no saga shows it",
        ("INSERT INTO inbox VALUES (%(other)s, 'EmailSent')",),
    ),
    "a message answered twice": (
        "payment",
        7,
        "message {created} was answered 2 times with PaymentProcessed",
        (AGAIN,),
    ),
    "a lease in the far future": (
        "order",
        8,
        "relay holds shard 3",
        ("UPDATE outbox_cursor SET owner = 'relay', lease_until = now() + interval '1 day' WHERE shard = 3",),
    ),
}
