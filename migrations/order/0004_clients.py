"""Clients with their keys and limits, and whose each order is."""

from alembic import op

revision = "order_0004"
down_revision = "order_0003"

# Whoever placed orders so far did so as `demo`; the default also lets the version before go on writing while a deployment rolls.
# NOT VALID: new rows are checked, and the old ones, which all have the default, are not read under the lock.
ORDERS = """
ALTER TABLE orders ADD COLUMN client text NOT NULL DEFAULT 'demo';
ALTER TABLE orders ADD CONSTRAINT orders_client_check CHECK (length(client) BETWEEN 1 AND 100) NOT VALID;
"""
# A bucket's level may be lost in a crash, which fills it; so it costs no WAL, and taking from it waits for no disk.
CLIENTS = """
CREATE TABLE clients (
    name       text             PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$'),
    rate_per_s double precision NOT NULL CHECK (rate_per_s BETWEEN 0.001 AND 1000000),
    burst      integer          NOT NULL CHECK (burst BETWEEN 1 AND 1000000),
    created_at timestamptz      NOT NULL DEFAULT now()
);
INSERT INTO clients (name, rate_per_s, burst) VALUES ('demo', 1000, 1000);

CREATE TABLE api_keys (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client     text        NOT NULL REFERENCES clients (name),
    label      text        NOT NULL DEFAULT '' CHECK (length(label) <= 100),
    env        text        NOT NULL CHECK (env IN ('development', 'production')),
    scopes     text[]      NOT NULL
        CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['checkout:write', 'checkout:read', 'ops:read', 'ops:write']),
    sha256     bytea       NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    last_used  date
);
CREATE INDEX api_keys_client ON api_keys (client);

CREATE UNLOGGED TABLE client_buckets (
    client  text             PRIMARY KEY REFERENCES clients (name),
    tokens  double precision NOT NULL CHECK (tokens >= 0),
    granted integer          NOT NULL CHECK (granted >= 0),
    at      timestamptz      NOT NULL
) WITH (fillfactor = 50);
"""


def upgrade() -> None:
    op.execute(ORDERS)
    op.execute(CLIENTS)
