"""Sagapost's own writer, through the chassis as the services use it; its relay is the service itself."""

import asyncio
import sys
from uuid import UUID

import uvloop

from benchmarks.relay import measured, stamps, writing
from benchmarks.relay.peers import business, checkout, contending
from sagapost_chassis import db, outbox


async def create(job: writing.Job) -> None:
    """Add one message, through the chassis, for the rows of a backlog to be copied from."""
    async with await db.Connection.connect(db.dsn_of(job.dsn, "bench-create")) as conn:
        await outbox.add(conn, _message(job, writing.Step(sequence=0, aggregate=0), 0), source="bench")


async def write(job: writing.Job) -> None:
    """Write as a service does: one transaction with the business rows and outbox.add, and a hint after its commit."""
    hints, stop = outbox.Hints(job.dsn, "bench-hints"), asyncio.Event()

    async def connect() -> writing.Transact:
        conn = await db.Connection.connect(db.dsn_of(job.dsn, "bench-writer"), autocommit=True)

        async def transact(step: writing.Step) -> None:
            async with conn.transaction():
                number = await business.change(conn, step)
                await outbox.add(conn, _message(job, step, number), source="bench")
                await writing.pause(step.after_s)
                if step.undone:
                    raise writing.UndoneError
            hints.soon()

        return transact

    async with asyncio.TaskGroup() as group:
        group.create_task(hints.run(stop))
        await writing.write(job, connect)
        stop.set()


def _message(job: writing.Job, step: writing.Step, number: int) -> measured.Measured:
    found = stamps.fields(step.sequence, step.aggregate, number, job.size_bytes)
    return measured.Measured(order_id=int(found["order_id"]), saga_id=UUID(stamps.SAGA), stamp=str(found["stamp"]), pad=str(found["pad"]))


if __name__ == "__main__":
    verbs = {"create": create, "write": write, "cost": checkout.cost}
    sys.exit(contending.main(verbs, lambda _: asyncio.Runner(loop_factory=uvloop.new_event_loop)))
