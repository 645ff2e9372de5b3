-- Messages already processed, claimed in the transaction of their effect.
CREATE TABLE inbox (
    message_id  uuid        PRIMARY KEY,
    type        text        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);

-- The log of outgoing messages. Rows are only inserted; a relay finds them by the transaction that wrote them.
-- CACHE 1 is part of the ordering guarantee: a session that caches ids would hand out small ones late.
CREATE SEQUENCE outbox_id AS bigint CACHE 1;

CREATE TABLE outbox (
    id             bigint      NOT NULL DEFAULT nextval('outbox_id'),
    bucket         smallint    NOT NULL DEFAULT 0,
    shard          smallint    NOT NULL CHECK (shard BETWEEN 0 AND 3),
    xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    event_id       uuid        NOT NULL,
    aggregate      text        NOT NULL,
    type           text        NOT NULL,
    routing_key    text        NOT NULL,
    correlation_id text        NOT NULL,
    headers        jsonb       NOT NULL,
    payload        bytea       NOT NULL,
    created_at     timestamptz NOT NULL
) PARTITION BY LIST (bucket);

CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES IN (0);
CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1);
CREATE TABLE outbox_2 PARTITION OF outbox FOR VALUES IN (2);
CREATE TABLE outbox_3 PARTITION OF outbox FOR VALUES IN (3);
CREATE INDEX outbox_window ON outbox (shard, xid, id);
CREATE INDEX outbox_page ON outbox (shard, id);

-- One cursor per shard: everything visible in `lo` has been confirmed by the broker; a window under way is (lo, hi], done up to last_id.
-- A new cursor starts from the empty snapshot. `epoch` fences: a checkpoint of an older owner touches no row.
CREATE TABLE outbox_cursor (
    shard             smallint    PRIMARY KEY,
    lo                pg_snapshot NOT NULL DEFAULT '1:1:',
    hi                pg_snapshot,
    last_id           bigint      NOT NULL DEFAULT 0,
    owner             text,
    epoch             bigint      NOT NULL DEFAULT 0,
    lease_until       timestamptz,
    system_identifier bigint      NOT NULL,
    updated_at        timestamptz NOT NULL DEFAULT now()
);
INSERT INTO outbox_cursor (shard, system_identifier)
SELECT shard, system_identifier FROM generate_series(0, 3) AS shard, pg_control_system();
