import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import pytest
from integration import relay_readers

from sagapost_chassis import db, outbox
from sagapost_relay import queries, snapshot
from sagapost_sandbox.testing import servers

pytestmark = pytest.mark.anyio
SHARDS = range(outbox.SHARDS)
LIMIT = 64
NEW = 8
LARGE = 56_000
# a poll that finds a few rows descends into four partitions for each of four shards
POLL_BLOCKS = 200
PAGE_BLOCKS = 400
FILL: Final = """
INSERT INTO outbox (shard, event_id, aggregate, type, routing_key, correlation_id, headers, payload, created_at)
SELECT g %% 4, gen_random_uuid(), 'order-' || g, 'type', 'key', 'id', '{}', convert_to(repeat('x', 200), 'UTF8'), now()
  FROM generate_series(1, %(rows)s) AS g
"""
EXPLAIN: Final = """
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on; SET auto_explain.log_timing = off;
SET auto_explain.log_buffers = on; SET auto_explain.log_format = json; SET auto_explain.log_level = notice
"""
# what tables were like when statements were planned, and like what they became: (rows added, analysed then)
HISTORIES: Final = {
    "empty": [],
    "small": [(160, False)],
    "small, analysed": [(160, True)],
    "large": [(LARGE, False)],
    "large, analysed": [(LARGE, True)],
    "large, analysed while tiny": [(16, True), (LARGE, False)],
    "large, analysed while small": [(1600, True), (LARGE, False)],
}


class Watched:
    """A relay's session; it keeps the plans of what it ran, as they were run."""

    def __init__(self, conn: db.Connection) -> None:
        self.conn = conn
        self._plans: list[dict[str, Any]] = []
        conn.add_notice_handler(lambda notice: self._keep(notice.message_primary or ""))

    def _keep(self, message: str) -> None:
        found = json.loads(message.partition("plan:")[2])
        if "FROM outbox AS v" in found["Query Text"]:
            self._plans.append(found["Plan"])

    async def window(self, at: queries.Position, hi: snapshot.Snapshot) -> dict[str, Any]:
        """Read a window of every shard, and give its plan."""
        await queries.window(self.conn, [(shard, at) for shard in SHARDS], hi, limit=LIMIT, max_bytes=relay_readers.MAX_BYTES)
        return self._plans.pop()

    async def page(self, at: queries.Position) -> dict[str, Any]:
        """Read a page of every shard, and give its plan."""
        await queries.page(self.conn, [(shard, at) for shard in SHARDS], limit=LIMIT, max_bytes=relay_readers.MAX_BYTES)
        return self._plans.pop()


@pytest.fixture
async def three_kinds(payment_db: str, database_server: servers.Databases) -> AsyncGenerator[dict[str, Watched]]:
    """Open sessions whose statements were planned while the tables were empty: the server's choice, one plan for ever, a plan each time."""
    dsn = f"{database_server.admin_dsn.rpartition('/')[0]}/{payment_db.rpartition('/')[2]}"  # only a superuser may LOAD
    async with contextlib.AsyncExitStack() as stack:
        kinds: dict[str, Watched] = {}
        for kind in ("auto", "force_generic_plan", "force_custom_plan"):
            conn = await stack.enter_async_context(await db.Connection.connect(dsn, autocommit=True, prepare_threshold=0))
            await queries.pin(conn)
            await conn.execute("SELECT set_config('plan_cache_mode', %s, false)", (kind,))
            await conn.execute(EXPLAIN, prepare=False)
            kinds[kind] = Watched(conn)
            for _ in range(7):  # the sixth may be generic
                hi, _ = await queries.current_snapshot(conn)
                await kinds[kind].window(relay_readers.START, hi)
                await kinds[kind].page(queries.Position(lo=relay_readers.START.lo, hi=hi, last_id=0))
        yield kinds


def scans(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the nodes of a plan that read the outbox."""
    below = [scan for child in node.get("Plans", ()) for scan in scans(child)]
    return [node, *below] if "Relation Name" in node else below


def sorts(node: dict[str, Any]) -> bool:
    """Tell whether anything is sorted."""
    return node["Node Type"] in {"Sort", "Incremental Sort"} or any(sorts(child) for child in node.get("Plans", ()))


def blocks(plan: dict[str, Any]) -> int:
    """Count the blocks that were looked at."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def rows_read(plan: dict[str, Any]) -> float:
    """Count the rows that came out of the tables; it counts by loop, as a whole number before PostgreSQL 18."""
    return float(
        sum(
            (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0) + scan.get("Rows Removed by Index Recheck", 0))
            * scan["Actual Loops"]
            for scan in scans(plan)
        )
    )


def assert_by_index(plan: dict[str, Any], column: str) -> None:
    """Each partition is read through an index by shard and this column, and by nothing else."""
    assert scans(plan)
    for scan in scans(plan):
        assert scan["Node Type"] == "Index Scan", scan
        assert "shard" in scan["Index Cond"], scan["Index Cond"]
        assert f"({column} >" in scan["Index Cond"], scan["Index Cond"]


async def fill(conn: db.Connection, steps: Sequence[tuple[int, bool]]) -> int:
    """Add rows to all partitions, analysing where asked to; give how many."""
    await conn.execute(
        "ALTER TABLE outbox_0 SET (autovacuum_enabled = off); ALTER TABLE outbox_1 SET (autovacuum_enabled = off);"
        "ALTER TABLE outbox_2 SET (autovacuum_enabled = off); ALTER TABLE outbox_3 SET (autovacuum_enabled = off)",
        prepare=False,
    )
    for rows, analyse in steps:
        for _ in range(4):
            await conn.execute(FILL, {"rows": rows // 4})
            await conn.execute("SELECT nextval('outbox_ring')")
        if analyse:
            await conn.execute("ANALYZE outbox")
    return sum(rows for rows, _ in steps)


@pytest.mark.parametrize("history", HISTORIES)
async def test_reading_costs_what_is_read_whatever_the_planner_knew(history: str, three_kinds: dict[str, Watched], payment_db: str) -> None:
    """Statements planned while the tables were empty: a poll beside a backlog reads what is new, a page its limit, by index."""
    async with await db.Connection.connect(payment_db, autocommit=True) as writer:
        total = await fill(writer, HISTORIES[history])
        lo, _ = await queries.current_snapshot(writer)
        await writer.execute(FILL, {"rows": NEW})
        hi, _ = await queries.current_snapshot(writer)

    for watched in three_kinds.values():
        poll = await watched.window(queries.Position(lo=lo, hi=None, last_id=0), hi)
        assert_by_index(poll, "xid")
        assert rows_read(poll) == NEW
        assert blocks(poll) <= POLL_BLOCKS

        backlog = await watched.window(relay_readers.START, hi)
        assert_by_index(backlog, "xid")

        page = await watched.page(queries.Position(lo=relay_readers.START.lo, hi=hi, last_id=total // 2))
        assert_by_index(page, "id")
        assert not sorts(page)
        assert rows_read(page) <= len(SHARDS) * (LIMIT + 4)  # the merge of four partitions looks one row ahead in each
        assert blocks(page) <= PAGE_BLOCKS


async def test_what_others_have_not_committed_is_not_read(three_kinds: dict[str, Watched], payment_db: str) -> None:
    """Beside 30,000 rows of an open transaction, before and after a poll's own, a poll reads its own few."""
    async with await db.Connection.connect(payment_db) as huge, await db.Connection.connect(payment_db, autocommit=True) as writer:
        lo, _ = await queries.current_snapshot(writer)
        await huge.execute(FILL, {"rows": 15_000})
        await writer.execute(FILL, {"rows": NEW})
        await huge.execute(FILL, {"rows": 15_000})
        hi, _ = await queries.current_snapshot(writer)

        for watched in three_kinds.values():
            poll = await watched.window(queries.Position(lo=lo, hi=None, last_id=0), hi)
            assert_by_index(poll, "xid")
            assert rows_read(poll) == NEW
            assert blocks(poll) <= POLL_BLOCKS
