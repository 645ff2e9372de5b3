"""Dead letters made on purpose, and the operator's replay of them, which may be told to die; it must not judge."""

import asyncio
import os
import signal
import sys
from datetime import datetime
from typing import Any, Final

import msgspec
import pamqp.commands
import pamqp.header

from sagapost_contracts import topology
from sagapost_ops import database, errors
from sagapost_ops.chaos import rig
from sagapost_ops.dlq import wire
from sagapost_sandbox import processes

QUEUE: Final = topology.PAYMENT_QUEUE
TRIES: Final = 60  # it needs both databases and the broker at once
EMPTYING: Final = 6
NOTHING_MATCHED: Final = 3
_AGAIN_S: Final = 1.0
_COMMAND_S: Final = 60.0
# an order that payment has dealt with: what is sent again must be recognised
_FINISHED: Final = """
SELECT o.event_id::text, o.correlation_id, o.created_at, o.headers, o.payload
  FROM outbox AS o JOIN sagas AS s ON s.id::text = o.correlation_id
 WHERE o.type = 'OrderCreated' AND s.deadline_at IS NULL ORDER BY o.id DESC LIMIT 1
"""


class Replays:
    """The replays of one campaign: `made` dead letters were put there, `deaths` replays were killed at their point."""

    def __init__(self, world: rig.Rig) -> None:
        self.made = 0
        self.deaths = 0
        self._rig = world
        where = world.plan.addresses
        self._urls = {
            "SAGAPOST_ORDER_DATABASE_URL": where.order_database_url,
            "SAGAPOST_PAYMENT_DATABASE_URL": where.payment_database_url,
            "SAGAPOST_AMQP_URL": where.amqp_url,
            "SAGAPOST_MANAGEMENT_URL": where.management_url,
        }

    async def die(self, point: str) -> bool:
        """Put a dead letter there and replay it with a process that dies at `point`; False when it never does."""
        for _ in range(TRIES):
            if await asyncio.to_thread(self._put) and await self._replay(QUEUE, point) == -signal.SIGKILL:
                self.deaths += 1
                await self._replay(QUEUE)
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    async def empty(self) -> dict[str, int]:
        """Replay every queue until nothing is left; give the exit code of each queue's last replay, 3 when there was nothing left."""
        codes: dict[str, int] = {}
        for queue in topology.WORK_QUEUES:
            for _ in range(EMPTYING):
                codes[queue] = await self._replay(queue)
                if codes[queue] == NOTHING_MATCHED:
                    break
                await asyncio.sleep(_AGAIN_S)
        return codes

    async def _replay(self, queue: str, crash: str = "") -> int:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")} | self._urls
        line = (sys.executable, "-P", "-m", "sagapost_ops", "dlq", "replay", queue, "--all", "--settle", "0")
        really = ("--max-replays", "20", "--yes", "--reason", "chaos")
        done = await asyncio.to_thread(
            processes.run, [*line, *really], cwd=self._rig.home, env=environ | {"SAGAPOST_CRASH": crash}, timeout_s=_COMMAND_S
        )
        return done.code

    def _put(self) -> bool:
        """Copy the message of a finished order into payment's dead letters, as if it had failed there."""
        try:
            with database.opened(self._urls["SAGAPOST_ORDER_DATABASE_URL"], "sagapost-chaos") as conn:
                found = conn.execute(_FINISHED).fetchone()
            if found is None:
                return False
            event_id, saga_id, created_at, headers, payload = found
            with wire.Link(self._urls["SAGAPOST_AMQP_URL"], "sagapost-chaos") as link:
                raw = pamqp.header.ContentHeader(0, len(payload), _properties(event_id, saga_id, created_at, headers)).marshal()[12:]
                stored = link.publish(link.channel(confirms=True), topology.dead_letter_queue(QUEUE), raw, bytes(payload)) == "stored"
        except (errors.CommandError, wire.WireError, OSError):
            return False
        self.made += stored
        return stored


def _properties(event_id: str, saga_id: str, created_at: datetime, headers: dict[str, Any]) -> pamqp.commands.Basic.Properties:
    known = msgspec.convert(headers, dict[str, Any])
    failure = {
        "x-attempt": 12,
        "x-exception-type": "ChaosError",
        "x-exception-message": "put here by the campaign",
        "x-fingerprint": "ChaosError@letters.py:put",
        "x-original-routing-key": "order.order.created",
    }
    return pamqp.commands.Basic.Properties(
        content_type="application/json",
        delivery_mode=2,
        message_id=event_id,
        correlation_id=saga_id,
        timestamp=created_at,
        message_type="OrderCreated",
        headers=known | failure,
    )
