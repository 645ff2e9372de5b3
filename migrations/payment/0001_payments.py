"""Payments, the ledger, the inbox and the outbox."""

from pathlib import Path

from alembic import op

revision = "payment_0001"
down_revision = None

PAYMENTS = """
CREATE TABLE payments (
    id                  bigint        GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id            bigint        NOT NULL UNIQUE,
    saga_id             uuid          NOT NULL UNIQUE,
    status              text          NOT NULL
        CHECK (status IN ('processing', 'captured', 'failed', 'voided', 'refunding', 'refunded')),
    version             integer       NOT NULL DEFAULT 1,
    amount              numeric(12,2) NOT NULL CHECK (amount >= 0),
    currency            char(3)       NOT NULL,
    payment_method      text          NOT NULL,
    transaction_id      text          UNIQUE,
    code                text,
    reason              text,
    user_email          text          NOT NULL,
    items               jsonb         NOT NULL,
    pay_before          timestamptz   NOT NULL,
    unanswered_calls    integer       NOT NULL DEFAULT 0,
    cancel_requested_at timestamptz,
    created_at          timestamptz   NOT NULL DEFAULT now(),
    updated_at          timestamptz   NOT NULL DEFAULT now(),
    CHECK (status NOT IN ('captured', 'refunding', 'refunded') OR transaction_id IS NOT NULL)
);
CREATE INDEX payments_open ON payments (updated_at) WHERE status IN ('processing', 'refunding');

-- Append-only: what money moved, at most one capture and one refund per order.
CREATE TABLE ledger (
    id             bigint        GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id       bigint        NOT NULL REFERENCES payments (order_id),
    kind           text          NOT NULL CHECK (kind IN ('capture', 'refund')),
    amount         numeric(12,2) NOT NULL CHECK (amount > 0),
    currency       char(3)       NOT NULL,
    transaction_id text          NOT NULL,
    at             timestamptz   NOT NULL DEFAULT now(),
    UNIQUE (order_id, kind)
);
"""


def upgrade() -> None:
    op.execute(PAYMENTS)
    op.execute((Path(__file__).parents[1] / "sql" / "outbox_1.sql").read_text())
