"""The memory that keeps a repeated message from being mailed twice, in one process and in several on one folder."""

import asyncio
import contextlib
import functools
import pathlib
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

import pytest

from sagapost_chassis import settings
from sagapost_email import errors, queries, recent, store
from sagapost_sandbox.testing import polling

pytestmark = pytest.mark.anyio

HOLDING: Final = """
import asyncio, pathlib, sys
from sagapost_email import recent

async def main():
    async with recent.Recent(pathlib.Path(sys.argv[1])).sending(sys.argv[2]):
        print("claimed", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


async def _sends(memory: recent.Recent, mail: str) -> bool:
    async with memory.sending(mail) as claim:
        return claim.fresh


async def _fails(memory: recent.Recent, mail: str, exc: Exception) -> None:
    try:
        async with memory.sending(mail) as claim:
            assert claim.fresh
            raise exc
    except type(exc) as caught:
        if str(caught) != str(exc):  # refused before the block began
            raise


@contextlib.contextmanager
def holding(folder: pathlib.Path, mail: str) -> Generator[subprocess.Popen[str]]:
    """Run another process that has claimed a mail; a line on its standard input makes it accept the mail and end."""
    line = [sys.executable, "-c", HOLDING, str(folder), mail]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        try:
            yield process
        finally:
            process.kill()


async def _waiting(task: asyncio.Task[bool]) -> None:
    done, _ = await asyncio.wait({task}, timeout=1)
    assert not done


async def test_a_message_is_sent_once() -> None:
    """Whoever comes with an accepted mail again is told not to send."""
    memory, message = recent.Recent(), str(uuid4())

    assert [await _sends(memory, message) for _ in range(2)] == [True, False]


async def test_a_message_that_was_not_accepted_is_sent_again() -> None:
    """A failed attempt leaves nothing behind: the retry sends."""
    memory, message = recent.Recent(), str(uuid4())

    await _fails(memory, message, ZeroDivisionError())

    assert await _sends(memory, message)


async def test_two_deliveries_at_once_do_not_both_send() -> None:
    """While one delivery is at it another waits, and then learns that the mail was accepted."""
    memory, message, end = recent.Recent(), str(uuid4()), asyncio.Event()

    async def first() -> bool:
        async with memory.sending(message) as claim:
            await end.wait()
            return claim.fresh

    sending = asyncio.create_task(first())
    others = [asyncio.create_task(_sends(memory, message)) for _ in range(3)]
    await _waiting(others[0])
    end.set()

    assert [await sending, *await asyncio.gather(*others)] == [True, False, False, False]


async def test_when_the_one_under_way_fails_the_next_sends() -> None:
    """Of those who waited one sends, and the others wait for it."""
    memory, message, end = recent.Recent(), str(uuid4()), asyncio.Event()

    async def first() -> None:
        async with memory.sending(message):
            await end.wait()
            raise ZeroDivisionError

    sending = asyncio.create_task(first())
    others = [asyncio.create_task(_sends(memory, message)) for _ in range(3)]
    await _waiting(others[0])
    end.set()

    assert isinstance((await asyncio.gather(sending, return_exceptions=True))[0], ZeroDivisionError)
    assert sorted(await asyncio.gather(*others)) == [False, False, True]


async def test_a_wait_ends_with_the_process_and_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for another delivery goes back to the broker at a stop, or when it takes too long, without losing an attempt."""
    stop, message = asyncio.Event(), str(uuid4())
    memory = recent.Recent(stop=stop)

    async with memory.sending(message):
        monkeypatch.setattr(recent, "WAIT_S", 0.2)
        with pytest.raises(errors.SendingNowError) as late:
            await _sends(memory, message)
        monkeypatch.setattr(recent, "WAIT_S", 60.0)
        waiting = asyncio.create_task(_sends(memory, message))
        await _waiting(waiting)
        stop.set()
        with pytest.raises(errors.SendingNowError):
            await waiting

    assert not late.value.counted


async def test_a_folder_outlives_the_process_and_is_shared(tmp_path: pathlib.Path) -> None:
    """What one process has sent neither its successor nor its neighbour sends again, whoever of them started first."""
    neighbour, first = (recent.Recent(tmp_path) for _ in range(2))
    mails = [f"receipt-{uuid4()}" for _ in range(3)]

    assert [await _sends(first, mail) for mail in mails] == [True, True, True]

    assert [await _sends(neighbour, mail) for mail in mails] == [False, False, False]
    assert [await _sends(recent.Recent(tmp_path), mail) for mail in mails] == [False, False, False]


async def test_another_process_waits_for_the_one_that_sends(tmp_path: pathlib.Path) -> None:
    """A claim holds across processes, and the mail that it ends with is known to who waited."""
    with holding(tmp_path, "receipt-1") as process:
        waiting = asyncio.create_task(_sends(recent.Recent(tmp_path), "receipt-1"))
        await _waiting(waiting)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

        assert not await waiting


async def test_a_dead_holder_holds_nothing(tmp_path: pathlib.Path) -> None:
    """The claim of a process that was killed goes with it: the next sends at once."""
    with holding(tmp_path, "receipt-1") as process:
        waiting = asyncio.create_task(_sends(recent.Recent(tmp_path), "receipt-1"))
        await _waiting(waiting)
        process.kill()

        assert await waiting


async def test_a_stopped_holder_still_holds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped (SIGSTOP) may go on: nobody else sends its mail, and the wait for it is bounded."""
    monkeypatch.setattr(recent, "WAIT_S", 1.0)
    with holding(tmp_path, "receipt-1") as process:
        process.send_signal(19)
        with pytest.raises(errors.SendingNowError):
            await _sends(recent.Recent(tmp_path), "receipt-1")


async def test_a_mail_that_was_not_accepted_is_not_noted(tmp_path: pathlib.Path) -> None:
    """Whoever dies, or fails, before the mail server's word leaves nothing behind."""
    await _fails(recent.Recent(tmp_path), "receipt-1", ZeroDivisionError())

    assert await _sends(recent.Recent(tmp_path), "receipt-1")


async def test_a_mail_in_doubt_waits_longer_each_time(tmp_path: pathlib.Path) -> None:
    """After a break behind the dot no process sends a second copy before the time is over; the wait doubles with each break."""
    memory, neighbour = (recent.Recent(tmp_path, doubt_s=1) for _ in range(2))
    await _fails(memory, "receipt-1", errors.MailInDoubtError("broken"))
    with pytest.raises(errors.MailInDoubtError) as first:
        await _sends(neighbour, "receipt-1")
    with contextlib.suppress(asyncio.CancelledError):
        async with memory.sending("receipt-2") as claim:
            claim.in_doubt = True
            raise asyncio.CancelledError
    with pytest.raises(errors.MailInDoubtError):
        await _sends(neighbour, "receipt-2")

    async def breaks_again() -> bool:
        with contextlib.suppress(errors.MailInDoubtError):
            await _fails(neighbour, "receipt-1", ZeroDivisionError())
            await _fails(neighbour, "receipt-1", errors.MailInDoubtError("broken again"))
            return True
        return False

    await polling.eventually(breaks_again)
    with pytest.raises(errors.MailInDoubtError) as second:
        await _sends(memory, "receipt-1")

    assert 0 < first.value.delay_s <= 1 < second.value.delay_s <= 2
    assert not first.value.counted


def test_the_wait_of_a_mail_in_doubt_is_bounded(tmp_path: pathlib.Path) -> None:
    """However often the conversation broke, the next copy waits no longer than the longest wait."""
    conn = queries.connect(str(tmp_path / "x"), busy_s=1)
    who = queries.Claimant(mail_id="m", holder="a", now=0)
    for _ in range(40):
        assert queries.claim(conn, who, lambda _: False).kind == "mine"
        queries.settle(conn, [queries.End(mail_id="m", kind="doubtful", at=who.now, wait_s=600)], holder="a", kept_s=10**9)
        who = queries.Claimant(mail_id="m", holder="a", now=who.now + queries.LONGEST_DOUBT_S)

    who = queries.Claimant(mail_id="m", holder="a", now=who.now - queries.LONGEST_DOUBT_S + 1)
    assert queries.claim(conn, who, lambda _: False) == queries.Verdict(kind="doubtful", wait_s=queries.LONGEST_DOUBT_S - 1)
    conn.close()


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_mail_in_doubt_waits_as_long_as_it_would_when_the_clock_is_set(tmp_path: pathlib.Path, step_s: float) -> None:
    """Set back, the wait begins anew and is no longer; set forward, it ends."""
    conn = queries.connect(str(tmp_path / "x"), busy_s=1)
    who = queries.Claimant(mail_id="m", holder="a", now=10_000.0)
    assert queries.claim(conn, who, lambda _: False).kind == "mine"
    queries.settle(conn, [queries.End(mail_id="m", kind="doubtful", at=who.now, wait_s=600)], holder="a", kept_s=10**9)

    found = [
        queries.claim(conn, queries.Claimant(mail_id="m", holder="b", now=who.now + step_s + passed_s), lambda _: False)
        for passed_s in (0, 599, 600)
    ]
    conn.close()

    wait = [queries.Verdict(kind="doubtful", wait_s=left_s) for left_s in (600, 1)] if step_s < 0 else [queries.Verdict(kind="mine")] * 2
    assert found == [*wait, queries.Verdict(kind="mine")]


def test_mails_from_a_later_time_count_for_an_hour_and_no_longer(tmp_path: pathlib.Path) -> None:
    """The limit of a recipient after the clock was set back: the two mails count from now on."""
    conn = queries.connect(str(tmp_path / "x"), busy_s=1)

    def asked(mail_id: str, now: float) -> queries.Verdict:
        who = queries.Claimant(mail_id=mail_id, holder="a", now=now, recipient="r", limit=2)
        return queries.claim(conn, who, lambda _: False)

    assert [asked(mail_id, 10_000.0).kind for mail_id in ("1", "2")] == ["mine", "mine"]
    queries.settle(conn, [queries.End(mail_id=one, kind="accepted", at=10_000.0) for one in ("1", "2")], holder="a", kept_s=10**9)

    found = [asked("3", now) for now in (6_400.0, 10_001.0)]
    conn.close()

    assert found == [queries.Verdict(kind="limited", wait_s=3600.0), queries.Verdict(kind="mine")]


def _named(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    return list(folder.glob(pattern))


def _rows(folder: pathlib.Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / store.FILE)) as conn:
        return [row[0] for row in conn.execute("SELECT mail_id FROM mails ORDER BY touched_at, mail_id")]


async def test_the_memory_is_bounded_by_age_alone(tmp_path: pathlib.Path) -> None:
    """Mails of the last two days stay however many there are; older ones go in batches, with each mail more than one."""
    now = time.time()
    with contextlib.closing(queries.connect(str(tmp_path / store.FILE), busy_s=1)) as conn:
        queries.take_over(conn, [f"new-{number}" for number in range(120_000)], now=now - recent.KEPT_S + 600)
        queries.take_over(conn, [f"old-{number:03}" for number in range(50)], now=now - recent.KEPT_S - 600)
    memory = recent.Recent(tmp_path)

    left: list[int] = []
    for mail in ("a", "b", "c"):
        assert await _sends(memory, mail)
        left.append(sum(row.startswith("old-") for row in _rows(tmp_path)))

    assert left == [30, 10, 0]
    assert not await _sends(memory, "new-0")
    assert len(_rows(tmp_path)) == 120_003


@pytest.mark.parametrize("folder", ["memory", ""], ids=["file", "process"])
async def test_a_clock_set_forward_forgets_no_mail(folder: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three days forward for one mail, in two steps, or for good: what was accepted before is not sent again, and what is older goes."""
    right = time.time
    memory = recent.Recent(tmp_path / folder if folder else None)
    assert await _sends(memory, "before")
    if folder:
        with contextlib.closing(queries.connect(str(tmp_path / folder / store.FILE), busy_s=1)) as conn:
            queries.take_over(conn, ["old"], now=right() - recent.KEPT_S - 600)

    for days in (1.5, 3, 0):
        monkeypatch.setattr(time, "time", lambda days=days: right() + days * 86_400)
        assert await _sends(memory, f"meanwhile-{days}")
        assert not await _sends(memory, "before")

    assert not await _sends(memory, "meanwhile-3")
    if folder:
        assert "old" not in _rows(tmp_path / folder)


async def test_a_clock_set_forward_forgets_no_mail_that_could_not_be_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process's own list of mails that the store does not know yet outlives the step as well."""
    monkeypatch.setattr(store, "BUSY_S", 0.05)
    monkeypatch.setattr(store, "AGAIN_S", 0.0)
    right = time.time
    memory = recent.Recent(tmp_path, patience_s=0)
    assert await _sends(memory, "opened")

    with _locked(tmp_path):
        assert await _sends(memory, "before")
        monkeypatch.setattr(time, "time", lambda: right() + 3 * 86_400)
        assert await _sends(memory, "meanwhile")
        assert not await _sends(memory, "before")


async def test_what_an_earlier_version_noted_is_taken_over(tmp_path: pathlib.Path) -> None:
    """The text files of today and yesterday are read at the start, older ones are removed."""
    today = datetime.now(UTC).date()
    for age in range(4):
        (tmp_path / f"accepted-{today - timedelta(days=age):%Y%m%d}.txt").write_text(f"receipt-{age}\n", encoding="ascii")
    memory = recent.Recent(tmp_path)

    assert not await _sends(memory, "receipt-0")
    assert await _sends(memory, "receipt-3")
    assert len(_named(tmp_path, "accepted-*.txt")) <= 2


def test_a_folder_that_cannot_be_used_is_named_at_the_start(tmp_path: pathlib.Path) -> None:
    """A file is no folder: the process ends with one sentence."""
    (tmp_path / "file").touch()

    with pytest.raises(settings.CannotStartError, match="SAGAPOST_MAIL_MEMORY"):
        recent.Recent(tmp_path / "file")


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Generator[None]:
    with contextlib.closing(sqlite3.connect(folder / store.FILE, isolation_level=None)) as conn:
        conn.execute("BEGIN EXCLUSIVE")
        yield
        conn.execute("ROLLBACK")


async def test_a_store_that_cannot_be_written_stops_mails_for_a_while_only(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First mails wait, without losing an attempt; after the patience each is sent, once by this process; the store learns of it later."""
    monkeypatch.setattr(store, "BUSY_S", 0.05)
    monkeypatch.setattr(store, "AGAIN_S", 0.0)
    memory = recent.Recent(tmp_path, patience_s=1)
    assert await _sends(memory, "before")

    async def sent() -> bool:
        try:
            return await _sends(memory, "receipt-1")
        except errors.MemoryUnavailableError as exc:
            return exc.counted

    with _locked(tmp_path):
        assert not await sent()
        await polling.eventually(sent)
        assert not await _sends(memory, "receipt-1")
        assert not await _sends(memory, "before")
        assert not await memory.check()

    assert await _sends(memory, "after")
    assert await memory.check()
    assert not await _sends(recent.Recent(tmp_path), "receipt-1")


FULL: Final = """
import asyncio, pathlib, resource, sys
from sagapost_email import errors, recent, store

async def main():
    store.AGAIN_S = 0.0
    memory = recent.Recent(pathlib.Path(sys.argv[1]), patience_s=0.5)
    async def sends(mail):
        try:
            async with memory.sending(mail) as claim:
                return claim.fresh
        except errors.MemoryUnavailableError:
            return None
    async with memory.sending("under way"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    first = await sends("receipt-1")
    while (second := await sends("receipt-1")) is None:
        await asyncio.sleep(0.05)
    third = await sends("receipt-1")
    known = await sends("before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while await sends("after") is None:
        await asyncio.sleep(0.05)
    print(first, second, third, known)

asyncio.run(main())
"""


def _without_room(folder: pathlib.Path) -> str:
    line = [sys.executable, "-c", FULL, str(folder)]
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout


async def test_a_full_disk_neither_stops_mails_nor_sends_them_without_bound(tmp_path: pathlib.Path) -> None:
    """No byte can be written: what was accepted before stays known, each mail is sent once, and all is stored when there is room again."""
    assert await _sends(recent.Recent(tmp_path), "before")

    said = _without_room(tmp_path)

    assert said.split("\n")[-2] == "None True False False"
    assert not await _sends(recent.Recent(tmp_path), "receipt-1")
    assert not await _sends(recent.Recent(tmp_path), "under way")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("damage", [b"no database at all" * 1000, b""], ids=["rubbish", "empty"])
async def test_a_damaged_store_is_put_away_and_made_anew(damage: bytes, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that SQLite cannot read is renamed, by one of the processes that notice, and mails go on."""
    monkeypatch.setattr(store, "AGAIN_S", 0.0)
    (tmp_path / store.FILE).write_bytes(damage)
    first, second = (recent.Recent(tmp_path) for _ in range(2))

    async def sent(memory: recent.Recent, mail: str) -> bool:
        try:
            await _sends(memory, mail)
        except errors.MemoryUnavailableError:
            return False
        return True

    for memory, mail in ((first, "receipt-1"), (second, "receipt-2")):
        await polling.eventually(functools.partial(sent, memory, mail))

    assert not await _sends(first, "receipt-2")
    assert not await _sends(second, "receipt-1")
    assert len(_named(tmp_path, f"{store.FILE}.broken-*")) == (1 if damage else 0)


async def test_a_folder_that_is_emptied_is_filled_again(tmp_path: pathlib.Path) -> None:
    """Whoever removes the files costs second copies at worst: the next mail makes new ones, and claims hold again."""
    folder = tmp_path / "memory"
    memory, neighbour = (recent.Recent(folder) for _ in range(2))
    assert await _sends(memory, "receipt-1")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

    assert await _sends(memory, "receipt-2")
    assert not await _sends(neighbour, "receipt-2")
    async with memory.sending("receipt-3"):
        waiting = asyncio.create_task(_sends(neighbour, "receipt-3"))
        await _waiting(waiting)
    assert not await waiting


async def test_a_limit_holds_for_one_recipient_and_an_hour() -> None:
    """The third mail to one address waits, whatever its case, one to another address does not; no address is stored."""
    memory = recent.Recent(limit=2)

    async def to(mail: str, recipient: str) -> bool:
        async with memory.sending(mail, recipient) as claim:
            return claim.fresh

    assert [await to("1", "a@x.example"), await to("2", "A@x.example")] == [True, True]
    with pytest.raises(errors.TooManyMailsError) as caught:
        await to("3", "a@x.example")
    assert await to("4", "b@x.example")
    assert not await to("2", "a@x.example")
    assert 3500 < caught.value.delay_s <= 3600
