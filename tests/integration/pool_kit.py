"""Pools for tests that are not about waiting for a connection or a lock: they wait longer than the services do."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from sagapost_chassis import db

PATIENCE_S: Final = 30.0
_OPTIONS: Final = "?options=-c%20lock_timeout%3D60s"


def patient(dsn: str) -> str:
    """Let whoever connects with this wait for locks for a minute, not five seconds."""
    return dsn + _OPTIONS


@contextlib.asynccontextmanager
async def opened(dsn: str, name: str = "test") -> AsyncGenerator[db.Pool]:
    """Open a pool that has its first connection."""
    async with db.open_pool(dsn, name) as pool:
        pool.timeout = PATIENCE_S
        await pool.wait(PATIENCE_S)
        yield pool
