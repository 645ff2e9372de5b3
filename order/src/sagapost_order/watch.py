"""Waiting for sagas to move: one query for everybody who waits in this process; it must not know who waits or why."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import prometheus_client

from sagapost_chassis import background, db, telemetry
from sagapost_order import saga_queries

PAUSE_S: Final = 0.1
READERS: Final = 4  # of the pool's 10 connections: whoever watches must not stand in the way of whoever buys

WAITING: Final = prometheus_client.Gauge("sagapost_saga_waiting", "Requests and streams that wait for a saga to move")


class Watch:
    """Looks at the versions of all sagas that somebody waits for, ten times a second, as long as somebody does.

    Who has waited reads the news in one of the `turns`: however many do at once, the pool keeps room for others.
    Not LISTEN: NOTIFY inside the transaction that moves a saga would line up all commits of the database.
    """

    def __init__(self, pool: db.Pool) -> None:
        self._pool = pool
        self._waiting: defaultdict[UUID, set[tuple[int, asyncio.Future[bool]]]] = defaultdict(set)
        self._somebody = asyncio.Event()
        self.turns = asyncio.Semaphore(READERS)
        self.ending = False

    async def newer(self, saga_id: UUID, version: int, timeout_s: float) -> bool:
        """Wait until a saga has a later version; False when it has none in time, or when this process is about to end."""
        if self.ending or timeout_s <= 0:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry = (version, answer)
        self._waiting[saga_id].add(entry)
        self._somebody.set()
        try:
            with WAITING.track_inprogress():
                async with asyncio.timeout(timeout_s):
                    return await answer
        except TimeoutError:
            return False
        finally:
            self._waiting[saga_id].discard(entry)
            if not self._waiting[saga_id]:
                del self._waiting[saga_id]

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop` is set; then nobody waits any longer."""
        try:
            await background.until(stop, self._look())
        finally:
            self.ending = True
            self._answer(dict.fromkeys(self._waiting))

    async def _look(self) -> None:
        while True:
            if not self._waiting:
                self._somebody.clear()
                await self._somebody.wait()
            try:
                async with db.connection(self._pool) as conn:
                    self._answer(await saga_queries.versions(conn, self._waiting.keys()))
            except Exception as exc:  # whatever it is, those who wait may wait on, until their time is over
                telemetry.log.warning("watch.blind", reason=f"{type(exc).__name__}: {exc}")
            await asyncio.sleep(PAUSE_S)

    def _answer(self, versions: Mapping[UUID, int | None]) -> None:
        for saga_id, version in versions.items():
            for known, answer in self._waiting.get(saga_id, ()):
                if not answer.done() and (version is None or version > known):
                    answer.set_result(version is not None)
