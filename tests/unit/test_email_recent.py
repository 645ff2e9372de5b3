"""The memory that keeps a repeated message from being mailed twice, in the process and in a folder."""

import contextlib
import pathlib
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from sagapost_chassis import settings
from sagapost_email import errors, recent


def test_a_message_is_sent_once() -> None:
    """Whoever comes with an accepted mail again is told not to send."""
    memory, message = recent.Recent(), str(uuid4())

    with memory.sending(message) as first:
        pass
    with memory.sending(message) as second:
        pass

    assert (first, second) == (True, False)


def test_a_message_that_was_not_accepted_is_sent_again() -> None:
    """A failed attempt leaves nothing behind: the retry sends."""
    memory, message = recent.Recent(), str(uuid4())

    with contextlib.suppress(ZeroDivisionError), memory.sending(message):
        raise ZeroDivisionError
    with memory.sending(message) as again:
        pass

    assert again


def test_two_deliveries_at_once_do_not_both_send() -> None:
    """While one delivery is at it, another goes back to the retry ladder."""
    memory, message = recent.Recent(), str(uuid4())

    with memory.sending(message), pytest.raises(errors.SendingNowError), memory.sending(message):
        pass


def test_the_memory_is_bounded() -> None:
    """Only the last messages are remembered."""
    memory, messages = recent.Recent(size=2), [str(uuid4()) for _ in range(3)]
    for message in messages:
        with memory.sending(message):
            pass

    with memory.sending(messages[0]) as oldest:
        pass
    with memory.sending(messages[2]) as newest:
        pass

    assert (oldest, newest) == (True, False)


def _sends(memory: recent.Recent, mail: str) -> bool:
    with memory.sending(mail) as fresh:
        return fresh


def test_a_folder_outlives_the_process_and_is_shared(tmp_path: pathlib.Path) -> None:
    """What one process has sent neither its successor nor its neighbour sends again, whoever of them started first."""
    neighbour, first = (recent.Recent(journal=recent.Journal(tmp_path)) for _ in range(2))
    mails = [f"receipt-{uuid4()}" for _ in range(3)]

    assert [_sends(first, mail) for mail in mails] == [True, True, True]

    assert [_sends(neighbour, mail) for mail in mails] == [False, False, False]
    assert [_sends(recent.Recent(journal=recent.Journal(tmp_path)), mail) for mail in mails] == [False, False, False]


def test_a_mail_that_was_not_accepted_is_not_noted(tmp_path: pathlib.Path) -> None:
    """Whoever dies, or fails, before the mail server's word leaves nothing behind."""
    with contextlib.suppress(ZeroDivisionError), recent.Recent(journal=recent.Journal(tmp_path)).sending("receipt-1"):
        raise ZeroDivisionError

    assert _sends(recent.Recent(journal=recent.Journal(tmp_path)), "receipt-1")


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: pathlib.Path) -> None:
    """Half a name is nobody's."""
    memory = recent.Journal(tmp_path)
    (file,) = tmp_path.iterdir()

    file.write_bytes(b"receipt-1\nrece")
    begun = list(memory.news())
    file.write_bytes(b"receipt-1\nreceipt-2\n")

    assert (begun, list(memory.news()), list(memory.news())) == (["receipt-1"], ["receipt-2"], [])


def test_yesterday_is_remembered_and_older_days_go(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is bounded by two days of mails."""
    today = datetime.now(UTC).date()
    monkeypatch.setattr(recent, "_today", lambda: today)  # it may be just before midnight
    for age in range(4):
        (tmp_path / f"accepted-{today - timedelta(days=age):%Y%m%d}.txt").write_text(f"receipt-{age}\n", encoding="ascii")

    assert set(recent.Journal(tmp_path).news()) == {"receipt-0", "receipt-1"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_used_is_named_at_the_start(tmp_path: pathlib.Path) -> None:
    """A file is no folder: the process ends with one sentence."""
    (tmp_path / "file").touch()

    with pytest.raises(settings.CannotStartError, match="SAGAPOST_MAIL_MEMORY"):
        recent.Journal(tmp_path / "file")
