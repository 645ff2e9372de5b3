"""The mails that are under way or were accepted lately, by a name of their own; it must not know what a mail is.

A mail is claimed before its conversation with the mail server begins and stored as accepted after the server's 250. A repeated message,
in this process or in another one on the same folder, waits for the end of a mail that is under way and then learns what became of it.
"""

import asyncio
import hashlib
import itertools
import pathlib
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, Self

from sagapost_chassis import steps, telemetry
from sagapost_email import domain, errors, queries, store

KEPT_S: Final = 2 * 86_400.0
WAIT_S: Final = 30.0  # for the end of a mail that is under way; then the message goes back to the broker for a while
DOUBT_S: Final = 600.0
PATIENCE_S: Final = 30.0
_BATCH: Final = 100
_ALL: Final = datetime.fromtimestamp(0, UTC)
_FIRST_POLL_S: Final = 0.05
_LONGEST_POLL_S: Final = 0.5


class Recent:
    """Remembers mails for two days: in `folder`, with all processes of this host that use it, or without one in this process.

    `doubt_s`: the wait before a second copy of a mail that was probably taken. `limit`: mails to one recipient in an hour, 0: any number.
    When the folder cannot be written for `patience_s` seconds, mails are sent all the same, each at most once by this process.
    `stop` ends all waits. When this host's clock is set forward, mails seem older than they are and are remembered for longer by as much.
    """

    def __init__(
        self,
        folder: pathlib.Path | None = None,
        *,
        doubt_s: float = DOUBT_S,
        patience_s: float = PATIENCE_S,
        limit: int = 0,
        stop: asyncio.Event | None = None,
    ) -> None:
        self._store = store.Store(folder)
        self._doubt_s = doubt_s
        self._patience_s = patience_s
        self._limit = limit
        self._stop = stop or asyncio.Event()
        self._under_way: dict[str, asyncio.Event] = {}
        self._unwritten: dict[str, queries.End] = {}  # how mails ended, as far as the store does not know it yet
        self._steps = steps.Steps(KEPT_S)
        self._now()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        left = -1
        while self._unwritten and len(self._unwritten) != left:
            left = len(self._unwritten)
            await self._write()
        await self._store.close()

    async def check(self) -> bool:
        """Return whether the last write to the store succeeded."""
        return self._store.away_s() == 0

    @asynccontextmanager
    async def sending(self, mail_id: str, recipient: str = "") -> AsyncGenerator[domain.Claim]:
        """Claim a mail for the block. The block sends it if the claim is fresh; its end without an exception counts as accepted.

        Raises:
            SendingNowError: another delivery is still sending it after `WAIT_S` seconds, or this process stops.
            MailInDoubtError: the mail server probably has it, and it is too early for a second copy.
            MemoryUnavailableError: the store cannot be used, and `patience_s` has not passed yet.
            TooManyMailsError: the recipient had `limit` mails in the last hour.

        """
        if not await self._claimed(mail_id, _digest(recipient) if self._limit else None):
            yield domain.Claim(fresh=False)
            return
        claim = domain.Claim(fresh=True)
        try:
            yield claim
        except errors.MailInDoubtError as exc:
            await self._end(mail_id, "doubtful")
            raise errors.MailInDoubtError(str(exc), delay_s=self._doubt_s) from exc
        except BaseException:
            await self._end(mail_id, "doubtful" if claim.in_doubt else "released")
            raise
        else:
            await self._end(mail_id, "accepted")
        finally:
            self._under_way.pop(mail_id).set()

    async def _claimed(self, mail_id: str, recipient: str | None) -> bool:
        """Return True when this call holds the claim, False when the mail was accepted; wait while somebody else sends it."""
        deadline, poll_s = time.monotonic() + WAIT_S, _FIRST_POLL_S
        while True:
            if (other := self._under_way.get(mail_id)) is not None:
                await self._pause(mail_id, other, deadline, WAIT_S)
                continue
            event = self._under_way[mail_id] = asyncio.Event()
            kind = ""
            try:
                verdict = await self._ask(mail_id, recipient)
                kind = verdict.kind
            finally:
                if kind != "mine":
                    self._under_way.pop(mail_id).set()
            if kind != "busy":
                return _require(mail_id, verdict)
            await self._pause(mail_id, event, deadline, poll_s)
            poll_s = min(2 * poll_s, _LONGEST_POLL_S)

    async def _pause(self, mail_id: str, event: asyncio.Event, deadline: float, seconds: float) -> None:
        """Wait for an event, or some seconds, or the end of this process."""
        left_s = deadline - time.monotonic()
        if self._stop.is_set() or left_s <= 0:
            raise errors.SendingNowError(f"{mail_id} is being sent already")
        waits = [asyncio.ensure_future(self._stop.wait())]
        if not event.is_set():
            waits.append(asyncio.ensure_future(event.wait()))
        try:
            await asyncio.wait(waits, timeout=min(left_s, seconds), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _ask(self, mail_id: str, recipient: str | None) -> queries.Verdict:
        now = time.time()
        if (verdict := _remembered(self._unwritten.get(mail_id), now)) is not None:
            return verdict

        def who() -> queries.Claimant:
            return queries.Claimant(mail_id=mail_id, holder=self._store.name, now=now, recipient=recipient, limit=self._limit)

        try:
            verdict = await self._store.run(lambda conn: queries.claim(conn, who(), self._store.alive))
        except errors.MemoryUnavailableError as exc:
            if self._store.away_s() < self._patience_s:
                raise
            telemetry.log.error("mail.memory_ignored", mail=mail_id, reason=str(exc))
            try:  # a full disk can still be read
                return await self._store.run(lambda conn: queries.look(conn, who(), self._store.alive), writes=False)
            except errors.MemoryUnavailableError:
                return queries.Verdict(kind="mine")
        if self._unwritten:
            await self._write()
        return verdict

    async def _end(self, mail_id: str, kind: queries.Ending) -> None:
        """Keep how a mail ended, in this process first, then in the store; what cannot be written now is written with a later mail."""
        self._unwritten[mail_id] = queries.End(mail_id=mail_id, kind=kind, at=self._now(), wait_s=self._doubt_s)
        await self._write()

    def _now(self) -> float:
        """Return the time by this host's clock, and note whether the clock was set since the last call."""
        began_s, now = time.monotonic(), time.time()
        self._steps.observe(datetime.fromtimestamp(now, UTC), began_s, time.monotonic())
        return now

    def _kept_s(self) -> float:
        """Return the age, by this host's clock, at which a mail may be forgotten."""
        return KEPT_S + self._steps.ahead_s(time.monotonic(), _ALL)

    async def _write(self) -> None:
        ends, kept_s = list(itertools.islice(self._unwritten.values(), _BATCH)), self._kept_s()
        try:
            await self._store.run(lambda conn: queries.settle(conn, ends, holder=self._store.name, kept_s=kept_s))
        except errors.MemoryUnavailableError:
            self._forget_old()
            return
        for end in ends:
            if self._unwritten.get(end.mail_id) is end:
                del self._unwritten[end.mail_id]

    def _forget_old(self) -> None:
        oldest = self._now() - self._kept_s()
        for end in list(itertools.islice(self._unwritten.values(), _BATCH)):
            if end.at < oldest:
                del self._unwritten[end.mail_id]


def _remembered(end: queries.End | None, now: float) -> queries.Verdict | None:
    if end is None or end.kind == "released":
        return None
    if end.kind == "accepted":
        return queries.Verdict(kind="accepted")
    left_s = min(end.at - now, 0) + end.wait_s  # no more than the whole wait, when the clock was set back
    return queries.Verdict(kind="doubtful", wait_s=left_s) if left_s > 0 else None


def _require(mail_id: str, verdict: queries.Verdict) -> bool:
    if verdict.kind == "doubtful":
        raise errors.MailInDoubtError(f"{mail_id} was probably taken; a second copy has to wait", delay_s=verdict.wait_s)
    if verdict.kind == "limited":
        raise errors.TooManyMailsError("this recipient had as many mails in the last hour as one may have", delay_s=verdict.wait_s)
    return verdict.kind == "mine"


def _digest(recipient: str) -> str:
    return hashlib.sha256(recipient.lower().encode()).hexdigest()
