"""What the poison story does beside the checkout: a fault in payment's database, a message's way to the dead letters, and back."""

import asyncio
import contextlib
import io
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Final

import aio_pika
import msgspec
from aio_pika import abc
from psycopg import sql

from sagapost_chassis import amqp
from sagapost_contracts import topology
from sagapost_ops import cli, database, errors, targets

LIMIT: Final = 5_000
QUEUE: Final = topology.PAYMENT_QUEUE
_NAME: Final = "sagapost-demo"
_DEAD: Final = topology.dead_letter_queue(QUEUE)
_CLIMB_S: Final = 60.0
_POLL_S: Final = 0.1
PATIENCE_S: Final = 10  # longer than the second step of the ladder; what would wait longer is moved on by hand
_DROP: Final = "ALTER TABLE payments DROP CONSTRAINT IF EXISTS demo_poison"
# A demo that is killed leaves nothing behind for long: the rule ends by itself. NOT VALID: orders that are there do not matter.
_ADD: Final = sql.SQL(
    "ALTER TABLE payments ADD CONSTRAINT demo_poison CHECK (amount <= {limit} OR clock_timestamp() > {end}::timestamptz) NOT VALID"
)
LASTS: Final = timedelta(minutes=3)

Say = Callable[[str], None]


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    queue: str
    depth: int


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """The demo's dead letter, as `dlq show --json` has it."""

    id: str
    order_id: int | None
    attempt: int
    exception: str
    fingerprint: str


@contextlib.contextmanager
def planted(where: targets.Targets) -> Generator[Callable[[], None]]:
    """Have payment's database refuse large amounts for the length of a block; call what it gives to mend that earlier.

    Raises:
        UnfitError: the database cannot be used.

    """
    end = (datetime.now(UTC) + LASTS).isoformat()
    with database.opened(targets.need(where, "payment_database_url"), _NAME, writing=True) as conn:
        conn.execute(_DROP)
        conn.execute(_ADD.format(limit=sql.Literal(LIMIT), end=sql.Literal(end)))
        try:
            yield lambda: _mend(conn)
        finally:
            conn.execute(_DROP)


def _mend(conn: database.Connection) -> None:
    conn.execute(_DROP)


def climb(where: targets.Targets, saga_id: str, say: Say) -> None:
    """Follow a saga's message up the retry ladder until it is dead; from a long wait it is moved on by hand.

    Raises:
        FailedError: it did not get there.
        UnfitError: the broker does not answer.

    """
    try:
        dead = asyncio.run(_climb(targets.need(where, "amqp_url"), saga_id, say))
    except amqp.BrokerUnavailableError as exc:
        raise errors.UnfitError(f"the broker does not answer: {exc}; see ./sagapost status") from exc
    if not dead:
        raise errors.FailedError(f"the message was not dead after {_CLIMB_S:.0f} s; see ./sagapost logs payment")


def letter(port_offset: int, order_id: int) -> Letter | None:
    """Find the order's dead letter; None when it has none."""
    if not any(line.depth for line in msgspec.json.decode(dlq(port_offset, "list", "--json"), type=list[_Line]) if line.queue == _DEAD):
        return None
    printed = dlq(port_offset, "show", QUEUE, "--limit", "10000", "--json")
    return next((found for found in msgspec.json.decode(printed, type=list[Letter]) if found.order_id == order_id), None)


def dlq(port_offset: int, *arguments: str) -> str:
    """Call `./sagapost dlq …` as a person does, and give what it prints.

    Raises:
        CommandError: what the command ends with.

    """
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as printed:
        cli.main.main(["dlq", *arguments, "--port-offset", str(port_offset)], prog_name="./sagapost", standalone_mode=False)
        printed.seek(0)
        return printed.read()


async def _climb(url: str, saga_id: str, say: Say) -> bool:
    connection = await amqp.connect(url, _NAME)
    try:
        with amqp.failures("the broker gave up"):
            async with amqp.Publisher(url, _NAME) as publisher:
                return await _Climber(await connection.channel(), publisher, saga_id, say).watch()
    finally:
        await amqp.close(connection)


class _Climber:
    """Looks at the retry queues: says in which of the quick ones a message waits, and takes the saga's out of the slow ones."""

    def __init__(self, channel: abc.AbstractChannel, publisher: amqp.Publisher, saga_id: str, say: Say) -> None:
        self._channel = channel
        self._publisher = publisher
        self._saga_id = saga_id
        self._say = say
        self._said: set[int] = set()

    async def watch(self) -> bool:
        """Look until there is one more dead letter, or the time is over."""
        before = await _depth(self._channel, _DEAD)
        deadline = time.monotonic() + _CLIMB_S
        while time.monotonic() < deadline:
            await self._look()
            if await _depth(self._channel, _DEAD) > before:
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def _look(self) -> None:
        for delay_s in topology.RETRY_DELAYS_S:
            waiting = await _depth(self._channel, topology.retry_queue(QUEUE, delay_s))
            if waiting and delay_s > PATIENCE_S:
                await self._move_on(delay_s, waiting)
            elif waiting and delay_s not in self._said:
                self._said.add(delay_s)
                self._say(f"payment failed; the message waits {delay_s} s in {topology.retry_queue(QUEUE, delay_s)}")

    async def _move_on(self, delay_s: int, waiting: int) -> None:
        queue = await self._channel.get_queue(topology.retry_queue(QUEUE, delay_s), ensure=False)
        others: list[abc.AbstractIncomingMessage] = []
        for _ in range(waiting):
            found = await queue.get(fail=False)
            if found is None:
                break
            if found.correlation_id != self._saga_id:
                others.append(found)
                continue
            attempt = found.headers.get("x-attempt")
            shown = attempt if isinstance(attempt, int) else "?"
            self._say(f"it failed again and would wait {delay_s} s; the demo moves it on by hand, to attempt {shown}")
            await self._publisher.publish(_again(found), exchange="", routing_key=QUEUE)  # confirmed before it is acknowledged
            await found.ack()
        for other in others:
            await other.nack(requeue=True)


def _again(found: abc.AbstractIncomingMessage) -> aio_pika.Message:
    return aio_pika.Message(
        found.body,
        headers=found.headers,
        content_type=found.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=found.message_id,
        correlation_id=found.correlation_id,
        timestamp=found.timestamp,
        type=found.type,
    )


async def _depth(channel: abc.AbstractChannel, queue: str) -> int:
    return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0
