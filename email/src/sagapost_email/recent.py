"""The mails that were accepted lately, by a name of their own; it must not know what a mail is.

Email has no database. A relay that was killed before its checkpoint publishes again, the same message comes twice, and a
saga that has not heard of its receipt in time asks for it again: this memory keeps the second mail from going out. With a
folder it outlives the process, and the processes of one machine that share the folder share the memory. What slips through
(a death between the server's 250 and the note, replicas elsewhere) is counted and bounded, for e-mail is at least once.
"""

from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from sagapost_chassis import settings, telemetry
from sagapost_email import errors

SIZE: Final = 100_000  # some 20 MB
_DAY: Final = timedelta(days=1)


class Journal:
    """A file for each day (UTC) with a line for each accepted mail; only today's and yesterday's are kept and read.

    A line is one write to the page cache: it survives the death of the process, not of the machine.

    Raises:
        settings.CannotStartError: the folder cannot be made or written to.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[date, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file(_today()).open("ab").close()
            for file in folder.glob("accepted-*.txt"):
                if file.name < self._file(_today() - _DAY).name:
                    file.unlink(missing_ok=True)
        except OSError as exc:
            raise settings.CannotStartError(f"SAGAPOST_MAIL_MEMORY: {folder} cannot be used: {exc.strerror}") from exc

    def add(self, mail_id: str) -> None:
        """Note an accepted mail. It cannot be taken back, so that a note that fails is logged and nothing else."""
        try:
            with self._file(_today()).open("ab", buffering=0) as file:
                file.write(f"{mail_id}\n".encode())
        except OSError as exc:
            telemetry.log.error("mail.not_noted", reason=str(exc.strerror))

    def news(self) -> Iterator[str]:
        """Give what has been noted since the last call, by whomever."""
        today = _today()
        for day in (today - _DAY, today):
            begin = self._read.get(day, 0)
            with suppress(OSError):
                if self._file(day).stat().st_size > begin:
                    with self._file(day).open("rb") as file:
                        file.seek(begin)
                        found = file.read()
                    end = found.rfind(b"\n") + 1  # whatever stands behind it is still being written
                    self._read[day] = begin + end
                    yield from found[:end].decode(errors="replace").split()

    def _file(self, day: date) -> Path:
        return self._folder / f"accepted-{day:%Y%m%d}.txt"


class Recent:
    """Remembers the last `size` mails that were accepted, in the process, and in a journal if there is one."""

    def __init__(self, size: int = SIZE, journal: Journal | None = None) -> None:
        self._size = size
        self._journal = journal
        self._accepted: OrderedDict[str, None] = OrderedDict()
        self._under_way: set[str] = set()

    @contextmanager
    def sending(self, mail_id: str) -> Generator[bool]:
        """Give False when the mail was accepted before, otherwise True: the block sends, and ends when it is accepted.

        Raises:
            SendingNowError: somebody else is in the block with this mail.

        """
        for noted in self._journal.news() if self._journal else ():
            self._remember(noted)
        if mail_id in self._accepted:
            yield False
            return
        if mail_id in self._under_way:
            raise errors.SendingNowError(f"{mail_id} is being sent already")
        self._under_way.add(mail_id)
        try:
            yield True
        finally:
            self._under_way.discard(mail_id)
        if self._journal:
            self._journal.add(mail_id)
        self._remember(mail_id)

    def _remember(self, mail_id: str) -> None:
        self._accepted[mail_id] = None
        if len(self._accepted) > self._size:
            self._accepted.popitem(last=False)


def _today() -> date:
    return datetime.now(UTC).date()
