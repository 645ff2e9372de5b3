"""When somebody should look at a payment again, whether a charge may appear later, and the charges that nobody asked for."""

from alembic import op

revision = "payment_0002"
down_revision = "payment_0001"

# The default lets the first version go on writing beside this one while a deployment rolls.
# What is under way in the first version is looked at when no call of it can be: whether its call was the only one, nobody knows any more.
LOOKS = """
ALTER TABLE payments
    ADD COLUMN uncertain boolean NOT NULL DEFAULT false,
    ADD COLUMN look_at   timestamptz,
    ADD COLUMN looks     integer NOT NULL DEFAULT 0;
UPDATE payments SET look_at = updated_at + interval '30 seconds', uncertain = true WHERE status IN ('processing', 'refunding');
ALTER TABLE payments ALTER COLUMN look_at SET DEFAULT now() + interval '60 seconds';
ALTER TABLE payments ADD CHECK (status NOT IN ('processing', 'refunding') OR look_at IS NOT NULL);
CREATE INDEX payments_look ON payments (look_at) WHERE look_at IS NOT NULL;
"""
# append-only: a provider that forgets its idempotency keys charges twice; what was given back beside the ledger stands here
DUPLICATES = """
CREATE TABLE duplicate_charges (
    transaction_id text          PRIMARY KEY,
    order_id       bigint        NOT NULL REFERENCES payments (order_id),
    amount         numeric(12,2) NOT NULL CHECK (amount > 0),
    currency       char(3)       NOT NULL,
    refund_id      text          NOT NULL,
    at             timestamptz   NOT NULL DEFAULT now()
);
REVOKE UPDATE, DELETE, TRUNCATE ON duplicate_charges FROM CURRENT_USER;
REVOKE DELETE, TRUNCATE ON ledger FROM CURRENT_USER;
"""


def upgrade() -> None:
    op.execute(LOOKS)
    op.execute(DUPLICATES)
