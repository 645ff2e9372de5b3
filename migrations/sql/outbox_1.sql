-- Messages already processed, claimed in the transaction of their effect.
CREATE TABLE inbox (
    message_id  uuid        PRIMARY KEY,
    type        text        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);

-- The log of outgoing messages. Rows are only inserted; a relay finds them by the transaction that wrote them.
-- CACHE 1 is part of the ordering guarantee: a session that caches ids would hand out small ones late.
CREATE SEQUENCE outbox_id AS bigint CACHE 1;

-- Counts the rotations of the ring below; the partition being filled is its value mod 4. A sequence, because its value is
-- read and moved outside any snapshot and without leaving a dead row behind.
CREATE SEQUENCE outbox_ring AS bigint MINVALUE 0 CACHE 1;
SELECT setval('outbox_ring', 0);

CREATE TABLE outbox (
    id             bigint      NOT NULL DEFAULT nextval('outbox_id'),
    bucket         smallint    NOT NULL DEFAULT (coalesce(pg_sequence_last_value('outbox_ring'), 0) % 4),
    shard          smallint    NOT NULL CHECK (shard BETWEEN 0 AND 3),
    xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    event_id       uuid        NOT NULL,
    aggregate      text        NOT NULL,
    type           text        NOT NULL,
    routing_key    text        NOT NULL,
    correlation_id text        NOT NULL,
    headers        jsonb       NOT NULL,
    payload        bytea       NOT NULL CONSTRAINT outbox_payload_size CHECK (octet_length(payload) <= 1048576),
    created_at     timestamptz NOT NULL
) PARTITION BY LIST (bucket);

-- Emptied whole by TRUNCATE, so that nothing is ever deleted: a vacuum after inserts would only stand in the way.
CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES IN (0) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE outbox_2 PARTITION OF outbox FOR VALUES IN (2) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE TABLE outbox_3 PARTITION OF outbox FOR VALUES IN (3) WITH (autovacuum_vacuum_insert_threshold = -1);
CREATE INDEX outbox_window ON outbox (shard, xid, id);
CREATE INDEX outbox_page ON outbox ((shard::integer), id); -- the cast: for the statement that names it, and for no other

-- Since when each partition has been filled; NULL: it is empty and has been since its last TRUNCATE.
CREATE TABLE outbox_bucket (
    bucket    smallint    PRIMARY KEY,
    opened_at timestamptz
);
INSERT INTO outbox_bucket (bucket, opened_at) VALUES (0, now()), (1, NULL), (2, NULL), (3, NULL);

-- One cursor per shard: everything visible in `lo` has been confirmed by the broker or set aside; a window under way is
-- (lo, hi], done up to last_id. A new cursor starts from the empty snapshot. `owner` and `epoch` fence: what an older owner
-- writes touches no row. `strikes` counts owners that ended without a release and without progress; `suspect` is the row
-- that was being published alone when the last of them ended.
CREATE TABLE outbox_cursor (
    shard             smallint    PRIMARY KEY,
    lo                pg_snapshot NOT NULL DEFAULT '1:1:',
    hi                pg_snapshot,
    last_id           bigint      NOT NULL DEFAULT 0,
    owner             text,
    epoch             bigint      NOT NULL DEFAULT 0,
    lease_until       timestamptz,
    strikes           integer     NOT NULL DEFAULT 0,
    suspect           bigint,
    system_identifier bigint      NOT NULL,
    updated_at        timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
INSERT INTO outbox_cursor (shard, system_identifier)
SELECT shard, system_identifier FROM generate_series(0, 3) AS shard, pg_control_system();

-- The relays that are alive, so that they can share the shards fairly.
CREATE TABLE outbox_relay (
    owner      text        PRIMARY KEY,
    seen_until timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Rows that the broker did not take, written in the transaction of the checkpoint that passes them.
-- waiting: tried again at retry_at; parked: out of attempts or hopeless, until a person says otherwise.
CREATE TABLE outbox_parked (
    id             bigint      PRIMARY KEY,
    shard          smallint    NOT NULL,
    event_id       uuid        NOT NULL,
    aggregate      text        NOT NULL,
    type           text        NOT NULL,
    routing_key    text        NOT NULL,
    correlation_id text        NOT NULL,
    headers        jsonb       NOT NULL,
    payload        bytea       NOT NULL,
    created_at     timestamptz NOT NULL,
    state          text        NOT NULL CHECK (state IN ('waiting', 'parked')),
    reason         text        NOT NULL CHECK (reason IN ('unroutable', 'nacked', 'too-large', 'refused', 'crash-suspect')),
    detail         text        NOT NULL,
    attempts       integer     NOT NULL,
    retry_at       timestamptz NOT NULL,
    aside_at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_parked_waiting ON outbox_parked (shard, retry_at) WHERE state = 'waiting';
