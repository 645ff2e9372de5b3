"""Payments and the ledger by saga: an order number may come again; generations of the idempotency keys, and the answer that was given."""

from alembic import op

revision = "payment_0004"
down_revision = "payment_0003"

# The version before writes the ledger without a saga while a deployment rolls: the trigger adds it. It does nothing for this version,
# and goes with the first migration after which that version is no longer supported.
SAGAS = """
ALTER TABLE ledger DROP CONSTRAINT ledger_order_id_fkey;
ALTER TABLE duplicate_charges DROP CONSTRAINT duplicate_charges_order_id_fkey;
ALTER TABLE ledger ADD COLUMN saga_id uuid;
ALTER TABLE duplicate_charges ADD COLUMN saga_id uuid;

GRANT UPDATE ON duplicate_charges TO CURRENT_USER;
UPDATE ledger AS l SET saga_id = p.saga_id FROM payments AS p WHERE p.order_id = l.order_id;
UPDATE duplicate_charges AS d SET saga_id = p.saga_id FROM payments AS p WHERE p.order_id = d.order_id;
REVOKE UPDATE ON duplicate_charges FROM CURRENT_USER;

CREATE FUNCTION add_saga() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT saga_id INTO STRICT NEW.saga_id FROM payments WHERE order_id = NEW.order_id;
    RETURN NEW;
END $$;
CREATE TRIGGER add_saga BEFORE INSERT ON ledger FOR EACH ROW WHEN (NEW.saga_id IS NULL) EXECUTE FUNCTION add_saga();
CREATE TRIGGER add_saga BEFORE INSERT ON duplicate_charges FOR EACH ROW WHEN (NEW.saga_id IS NULL) EXECUTE FUNCTION add_saga();

ALTER TABLE payments DROP CONSTRAINT payments_order_id_key;
CREATE INDEX payments_order ON payments (order_id);
ALTER TABLE ledger
    DROP CONSTRAINT ledger_order_id_kind_key,
    ALTER COLUMN saga_id SET NOT NULL,
    ADD UNIQUE (saga_id, kind),
    ADD FOREIGN KEY (saga_id) REFERENCES payments (saga_id);
CREATE INDEX ledger_order ON ledger (order_id);
ALTER TABLE duplicate_charges
    ALTER COLUMN saga_id SET NOT NULL,
    ADD FOREIGN KEY (saga_id) REFERENCES payments (saga_id);
CREATE INDEX duplicate_charges_saga ON duplicate_charges (saga_id);
"""
# *_generation: the number in the idempotency key; *_errors: answered errors under that key; told_id: the event that told how it ended
KEYS = """
ALTER TABLE payments
    ADD COLUMN charge_generation integer NOT NULL DEFAULT 1,
    ADD COLUMN charge_errors     integer NOT NULL DEFAULT 0,
    ADD COLUMN refund_generation integer NOT NULL DEFAULT 1,
    ADD COLUMN refund_errors     integer NOT NULL DEFAULT 0,
    ADD COLUMN told_id           uuid;
"""


def upgrade() -> None:
    op.execute(SAGAS)
    op.execute(KEYS)
