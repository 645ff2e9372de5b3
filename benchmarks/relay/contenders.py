"""Who is measured: how each one's tables are made, filled and read, and how it is started; figures are none of its business."""

import pathlib
import sys
from typing import Final

import msgspec

ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
_PEERS: Final = "benchmarks.relay.peers"


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One way to relay. `fill` copies bench_sample's row; `waiting` counts rows still to go, `aside` those kept as failed.

    `share` of the rows is enough for a slow one: its rate is the same.
    """

    name: str
    module: str
    note: str
    schema: str = ""
    fill: str
    waiting: str
    aside: str = "SELECT 0"
    python: str = sys.executable
    variant: str = ""
    share: float = 1.0
    is_service: bool = False


_STAMPED: Final = """
overlay(s.payload PLACING convert_to('@bench:' || lpad(g::text, 10, '0') || ':' || lpad((g %% 100)::text, 6, '0') || ':'
    || lpad((g / 100)::text, 8, '0'), 'UTF8') FROM position('@bench:'::bytea IN s.payload))
"""
_ROWS: Final = "FROM bench_sample AS s, generate_series(%(first)s::bigint, %(last)s::bigint) AS g"
_KEY: Final = "CASE WHEN %(unroutable)s > 0 AND g %% %(unroutable)s = 0 THEN 'payment.bench.nobody' ELSE s.{column} END"

SAGAPOST: Final = Contender(
    name="sagapost",
    module=f"{_PEERS}.sagapost",
    note="this project: the relay as it is deployed, one process",
    schema="\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "migrations" / "sql").glob("outbox_*.sql"))),
    fill=f"""
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT (%(shards)s::smallint[])[g %% 100 + 1], gen_random_uuid(), 'order-' || (g %% 100), s.type, {_KEY.format(column="routing_key")},
       s.correlation_id, s.headers, {_STAMPED}, now() {_ROWS} ORDER BY g
""",
    waiting="SELECT 0",
    aside="SELECT count(*) FROM outbox_parked",
    is_service=True,
)
SKIP_LOCKED: Final = Contender(
    name="skip_locked",
    module=f"{_PEERS}.skip_locked",
    variant="skip_locked",
    note="the recipe: SELECT … FOR UPDATE SKIP LOCKED LIMIT 500, publish together through aio-pika, DELETE; asks again after 5 ms",
    schema="""
CREATE TABLE outbox (id bigserial PRIMARY KEY, routing_key text NOT NULL, payload bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());
""",
    fill=f"INSERT INTO outbox (routing_key, payload) SELECT {_KEY.format(column='routing_key')}, {_STAMPED} {_ROWS} ORDER BY g",
    waiting="SELECT count(*) FROM outbox",
)
HORIZON: Final = Contender(
    name="horizon",
    module=f"{_PEERS}.skip_locked",
    variant="horizon",
    note="a cursor over (xid, id) that reads what is older than pg_snapshot_xmin(pg_current_snapshot()); 500 rows, asks again after 5 ms",
    schema="""
CREATE TABLE outbox (id bigserial PRIMARY KEY, xid xid8 NOT NULL DEFAULT pg_current_xact_id(), routing_key text NOT NULL,
    payload bytea NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX outbox_behind ON outbox (xid, id);
CREATE TABLE outbox_cursor (xid xid8 NOT NULL, id bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO outbox_cursor VALUES ('0', 0);
""",
    fill=SKIP_LOCKED.fill,
    waiting="SELECT count(*) FROM outbox, outbox_cursor AS c WHERE (outbox.xid, outbox.id) > (c.xid, c.id)",
)


def peers(python: pathlib.Path) -> tuple[Contender, ...]:
    """Name the packages' contenders, run by the interpreter that has them."""
    txoutbox = f"""
INSERT INTO outbox (topic, key, payload, headers)
SELECT {_KEY.format(column="topic")}, 'order-' || (g %% 100), {_STAMPED}, s.headers {_ROWS} ORDER BY g
"""
    faststream = f"""
INSERT INTO outbox (queue, payload, headers)
SELECT CASE WHEN %(unroutable)s > 0 AND g %% %(unroutable)s = 0 THEN 'nobody' ELSE s.queue END, {_STAMPED}, s.headers {_ROWS} ORDER BY g
"""
    pending = "SELECT count(*) FROM outbox WHERE status = 'pending'"
    return (
        Contender(
            name="txoutbox-tuned",
            module=f"{_PEERS}.txoutbox",
            variant="tuned",
            python=str(python),
            note="batch_size and concurrency 2000, LISTEN/NOTIFY, delete_on_ack, polls 5-50 ms, uvloop; strict order by key kept",
            fill=txoutbox,
            waiting=pending,
            aside="SELECT count(*) FROM outbox WHERE status = 'dead'",
        ),
        Contender(
            name="txoutbox",
            module=f"{_PEERS}.txoutbox",
            variant="documented",
            python=str(python),
            note="as its quick start: every setting at its default",
            fill=txoutbox,
            waiting=pending,
            aside="SELECT count(*) FROM outbox WHERE status = 'dead'",
            share=0.2,
        ),
        Contender(
            name="faststream-outbox-tuned",
            module=f"{_PEERS}.faststream_outbox",
            variant="tuned",
            python=str(python),
            note="8 workers, fetch_batch_size 500, terminal_flush_batch_size 100, polls 5-50 ms, its autovacuum settings, uvloop",
            fill=faststream,
            waiting="SELECT count(*) FROM outbox",
            share=0.4,
        ),
        Contender(
            name="faststream-outbox",
            module=f"{_PEERS}.faststream_outbox",
            variant="documented",
            python=str(python),
            note="as its relay page: every setting at its default",
            fill=faststream,
            waiting="SELECT count(*) FROM outbox",
            share=0.05,
        ),
    )
