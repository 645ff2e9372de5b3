-- Sagas in flight as the first version of the order service left them, one in each state that had not ended, and two that had.
INSERT INTO orders (id, user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms, created_at, updated_at)
OVERRIDING SYSTEM VALUE
SELECT n, 1, 'golden-' || n || '@example.com', status, 'USD', 49.99, 'pm_card_ok', 12, now() - interval '5 minutes', now() - interval '4 minutes'
  FROM (VALUES (1, 'pending'), (2, 'paid'), (3, 'cancelling'), (4, 'attention'), (5, 'attention'), (6, 'completed'), (7, 'cancelled')) AS o (n, status);
INSERT INTO order_items (order_id, line, product_id, name, quantity, price) SELECT n, 1, 2, 'Wireless Mouse', 1, 49.99 FROM generate_series(1, 7) AS n;
INSERT INTO sagas (id, order_id, state, version, amount, captured, refunded, currency, payment_version, notified_at, reason, attention,
                   deadline_at, deadline_kind, created_at, updated_at)
SELECT ('0193b1c2-7d4e-7a10-9f0e-00000000000' || n)::uuid, n, state, version, 49.99, captured, refunded, 'USD', payment_version,
       CASE WHEN state = 'notified' THEN now() - interval '4 minutes' END, reason, attention,
       now() + wait, kind, now() - interval '5 minutes', now() - interval '4 minutes'
  FROM (VALUES
    (1, 'created',             1, 0,     0,     0, NULL,        NULL,             interval '10 minutes', 'pay'),
    (2, 'paid',                2, 49.99, 0,     2, NULL,        NULL,             interval '1 minute',   'notify'),
    (3, 'compensating',        2, 0,     0,     0, 'timeout',   NULL,             interval '5 seconds',  'compensate'),
    (4, 'notify_failed',       3, 49.99, 0,     2, NULL,        'receipt_failed', interval '1 hour',     'notify'),
    (5, 'compensation_failed', 4, 49.99, 0,     3, 'timeout',   'refund_failed',  interval '15 minutes', 'compensate'),
    (6, 'notified',            3, 49.99, 0,     2, NULL,        NULL,             NULL,                  NULL),
    (7, 'compensated',         2, 0,     0,     1, 'declined',  NULL,             NULL,                  NULL)
  ) AS s (n, state, version, captured, refunded, payment_version, reason, attention, wait, kind);
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, message_id, source, reason, facts, at)
SELECT ('0193b1c2-7d4e-7a10-9f0e-00000000000' || n)::uuid, seq, from_state, to_state, event, 'applied', gen_random_uuid(),
       CASE seq WHEN 1 THEN 'http' ELSE 'event' END, NULL,
       jsonb_build_object('captured', captured::text, 'refunded', '0.00', 'payment_version', payment_version, 'notified_at', NULL,
                          'cancellation_sent_at', NULL, 'reason', NULL, 'attempts', 0, 'attention', NULL, 'deadline_at', NULL,
                          'deadline_kind', NULL),
       now() - interval '5 minutes' + seq * interval '10 seconds'
  FROM (VALUES
    (1, 1, 'none', 'OrderCreated', 'created', '0.00', 0),
    (2, 1, 'none', 'OrderCreated', 'created', '0.00', 0), (2, 2, 'created', 'PaymentProcessed', 'paid', '49.99', 2),
    (3, 1, 'none', 'OrderCreated', 'created', '0.00', 0), (3, 2, 'created', 'PaymentProcessed', 'compensating', '0.00', 0),
    (4, 1, 'none', 'OrderCreated', 'created', '0.00', 0), (4, 2, 'created', 'PaymentProcessed', 'paid', '49.99', 2),
    (4, 3, 'paid', 'EmailFailed', 'notify_failed', '49.99', 2),
    (5, 1, 'none', 'OrderCreated', 'created', '0.00', 0), (5, 2, 'created', 'PaymentProcessed', 'compensating', '49.99', 2),
    (5, 3, 'compensating', 'EmailSent', 'compensating', '49.99', 2), (5, 4, 'compensating', 'RefundFailed', 'compensation_failed', '49.99', 3),
    (6, 1, 'none', 'OrderCreated', 'created', '0.00', 0), (6, 2, 'created', 'PaymentProcessed', 'paid', '49.99', 2),
    (6, 3, 'paid', 'EmailSent', 'notified', '49.99', 2),
    (7, 1, 'none', 'OrderCreated', 'created', '0.00', 0), (7, 2, 'created', 'PaymentFailed', 'compensated', '0.00', 1)
  ) AS h (n, seq, from_state, event, to_state, captured, payment_version);
SELECT setval(pg_get_serial_sequence('orders', 'id'), 7);
