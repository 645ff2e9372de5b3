"""The catalogue, orders with their idempotency keys, sagas with their history, the inbox and the outbox."""

from pathlib import Path

from alembic import op

revision = "order_0001"
down_revision = None

ORDERS = """
CREATE TABLE products (
    id          bigint        PRIMARY KEY,
    name        text          NOT NULL,
    description text          NOT NULL,
    price       numeric(12,2) NOT NULL CHECK (price > 0),
    currency    char(3)       NOT NULL DEFAULT 'USD'
);
INSERT INTO products (id, name, description, price) VALUES
    (1, 'Gaming Laptop', '16 inch, 32 GB of memory, quiet under load', 1299.99),
    (2, 'Wireless Mouse', 'Six buttons, a month on one charge', 49.99),
    (3, 'Mechanical Keyboard', 'Tactile switches, steel frame', 149.99),
    (4, 'USB-C Dock', 'Two screens, four ports, one cable', 189.00),
    (5, 'Monitor 27 inch', '2560 by 1440, 120 Hz', 329.50),
    (6, 'Noise-cancelling Headphones', 'Thirty hours of quiet', 249.95),
    (7, 'Webcam', '1080p with a privacy shutter', 79.90),
    (8, 'Desk Lamp', 'Warm to cold, no flicker', 39.99),
    (9, 'Portable SSD 1 TB', '1,000 MB/s in a pocket', 119.00),
    (10, 'Laptop Stand', 'Folded aluminium', 34.50),
    (11, 'HDMI Cable', 'Two metres', 9.99),
    (12, 'Sticker Sheet', 'Twelve of them', 0.99);

CREATE TABLE orders (
    id                     bigint        GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id                bigint        NOT NULL CHECK (user_id > 0),
    user_email             text          NOT NULL,
    status                 text          NOT NULL
        CHECK (status IN ('pending', 'paid', 'completed', 'cancelling', 'cancelled', 'attention')),
    currency               char(3)       NOT NULL,
    total_amount           numeric(12,2) NOT NULL CHECK (total_amount > 0),
    payment_method         text          NOT NULL,
    processing_duration_ms integer       NOT NULL CHECK (processing_duration_ms >= 0),
    created_at             timestamptz   NOT NULL,
    updated_at             timestamptz   NOT NULL
);
CREATE INDEX orders_created ON orders (created_at DESC);

CREATE TABLE order_items (
    order_id   bigint        NOT NULL REFERENCES orders (id),
    line       smallint      NOT NULL,
    product_id bigint        NOT NULL REFERENCES products (id),
    name       text          NOT NULL,
    quantity   integer       NOT NULL CHECK (quantity BETWEEN 1 AND 100),
    price      numeric(12,2) NOT NULL CHECK (price > 0),
    PRIMARY KEY (order_id, line),
    UNIQUE (order_id, product_id)
);

-- The first answer to a checkout, written with its order: whoever repeats the key gets it again, byte for byte.
CREATE TABLE idempotency_keys (
    client      text        NOT NULL,
    key         text        NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    fingerprint bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
    order_id    bigint      NOT NULL REFERENCES orders (id),
    status      smallint    NOT NULL,
    location    text        NOT NULL,
    body        bytea       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client, key)
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);
"""

SAGAS = """
CREATE TABLE sagas (
    id                   uuid          PRIMARY KEY,
    order_id             bigint        NOT NULL UNIQUE REFERENCES orders (id),
    state                text          NOT NULL CHECK (state IN
        ('created', 'paid', 'notified', 'compensating', 'compensated', 'notify_failed', 'compensation_failed')),
    version              integer       NOT NULL CHECK (version > 0),
    amount               numeric(12,2) NOT NULL,
    captured             numeric(12,2) NOT NULL DEFAULT 0,
    refunded             numeric(12,2) NOT NULL DEFAULT 0,
    currency             char(3)       NOT NULL,
    payment_version      integer       NOT NULL DEFAULT 0,
    notified_at          timestamptz,
    cancellation_sent_at timestamptz,
    reason               text,
    attempts             integer       NOT NULL DEFAULT 0,
    attention            text,
    deadline_at          timestamptz,
    deadline_kind        text,
    trace_id             text,
    created_at           timestamptz   NOT NULL,
    updated_at           timestamptz   NOT NULL,
    CHECK (refunded <= captured),
    CHECK (state <> 'compensated' OR captured = refunded),
    CHECK (state NOT IN ('paid', 'notified') OR captured > refunded),
    CHECK ((state IN ('notified', 'compensated')) = (deadline_at IS NULL)),
    CHECK ((deadline_at IS NULL) = (deadline_kind IS NULL))
);
CREATE INDEX sagas_deadline ON sagas (deadline_at) WHERE deadline_at IS NOT NULL;

-- The legal edges, generated from the transition table in code: an illegal one cannot be stored.
CREATE TABLE saga_transitions (
    from_state text NOT NULL,
    event      text NOT NULL,
    to_state   text NOT NULL,
    PRIMARY KEY (from_state, event, to_state)
);

CREATE TABLE saga_history (
    saga_id    uuid        NOT NULL REFERENCES sagas (id),
    seq        integer     NOT NULL CHECK (seq > 0),
    from_state text        NOT NULL,
    to_state   text        NOT NULL,
    event      text        NOT NULL,
    outcome    text        NOT NULL CHECK (outcome IN ('applied', 'ignored')),
    message_id uuid,
    source     text        NOT NULL CHECK (source IN ('event', 'deadline', 'http', 'operator')),
    actor      text,
    reason     text,
    facts      jsonb       NOT NULL,
    at         timestamptz NOT NULL,
    PRIMARY KEY (saga_id, seq),
    FOREIGN KEY (from_state, event, to_state) REFERENCES saga_transitions (from_state, event, to_state)
);

-- A trigger and not only REVOKE: the owner of a table keeps all rights on it.
CREATE FUNCTION saga_history_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'saga_history is append-only';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON saga_history
    FOR EACH STATEMENT EXECUTE FUNCTION saga_history_is_append_only();
"""


def upgrade() -> None:
    op.execute(ORDERS)
    op.execute(SAGAS)
    op.execute((Path(__file__).parents[1] / "sql" / "outbox_1.sql").read_text())
    op.execute((Path(__file__).parents[1] / "sql" / "saga_transitions_1.sql").read_text())
