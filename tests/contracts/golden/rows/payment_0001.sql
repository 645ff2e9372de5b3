-- Payments as the first version of the payment service left them, under way and ended.
INSERT INTO payments (order_id, saga_id, status, version, amount, currency, payment_method, transaction_id, user_email, items, pay_before,
                      created_at, updated_at)
SELECT n, ('0193b1c2-7d4e-7a10-9f0e-00000000000' || n)::uuid, status, version, 49.99, 'USD', 'pm_card_ok', transaction_id,
       'golden-' || n || '@example.com',
       '[{"product_id": 2, "name": "Wireless Mouse", "quantity": 1, "price": "49.99"}]', now() + interval '10 minutes',
       now() - interval '5 minutes', now() - interval '4 minutes'
  FROM (VALUES (1, 'processing', 1, NULL), (2, 'captured', 2, 'ch_2'), (3, 'processing', 1, NULL), (4, 'captured', 2, 'ch_4'),
               (5, 'captured', 4, 'ch_5'), (6, 'captured', 2, 'ch_6'), (7, 'failed', 2, NULL)) AS p (n, status, version, transaction_id);
INSERT INTO ledger (order_id, kind, amount, currency, transaction_id)
SELECT order_id, 'capture', 49.99, 'USD', transaction_id FROM payments WHERE transaction_id IS NOT NULL;
