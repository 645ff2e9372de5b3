"""The business part of a measured transaction on psycopg: lock the aggregate, count, insert a row."""

from typing import Any, Final

import psycopg

from benchmarks.relay import writing

CHANGE: Final = """
WITH locked AS (UPDATE bench_aggregate SET number = number + 1 WHERE id = %s RETURNING id, number)
INSERT INTO bench_order (aggregate, number, note) SELECT id, number, 'one line of business' FROM locked RETURNING number
"""


async def change(conn: psycopg.AsyncConnection[tuple[Any, ...]], step: writing.Step) -> int:
    """Change the aggregate and give its new number; its row stays locked until the transaction ends."""
    if step.early:
        await conn.execute(writing.NOISE)
    await writing.pause(step.early_s)
    cursor = await conn.execute(CHANGE, (step.aggregate,))
    found = await cursor.fetchone()
    if found is None:
        raise LookupError(f"there is no aggregate {step.aggregate}")
    await writing.pause(step.held_s)
    return int(found[0])
