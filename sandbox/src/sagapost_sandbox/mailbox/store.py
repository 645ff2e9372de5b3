"""The accepted mails: all of them in a file, the newest in memory; knows neither SMTP nor HTTP."""

import collections
import contextlib
import datetime as dt
import pathlib
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec

from sagapost_sandbox import journal
from sagapost_sandbox.mailbox import mime, wire

KEPT: Final = 20_000
_ENTRY: Final = msgspec.json.Decoder(wire.Entry)


class Store:
    """Open it with `opened`."""

    def __init__(self, ledger: journal.Journal, hidden: pathlib.Path, lines: Sequence[bytes]) -> None:
        self._ledger = ledger
        self._hidden = hidden
        self._written = len(lines)
        self._mails: collections.OrderedDict[str, wire.Entry] = collections.OrderedDict()
        for line in lines[_hidden_lines(hidden) :][-KEPT:]:
            self._take_in(_ENTRY.decode(line))

    async def accept(self, raw: bytes, sender: str, recipients: Sequence[str]) -> wire.Entry:
        """Keep a mail; it is on disk when this returns.

        Raises:
            OSError: it could not be written, and is not kept.

        """
        found = mime.headers(raw)
        entry = wire.Entry(
            id=uuid.uuid4().hex[:22],
            message_id=mime.message_id(found),
            sender=sender,
            to=tuple(recipients),
            subject=mime.subject(found),
            headers=found,
            size=len(raw),
            at=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            raw=raw,
        )
        await self._ledger.append(msgspec.json.encode(entry))
        self._written += 1
        self._take_in(entry)
        return entry

    def newest_first(self) -> list[wire.Entry]:
        """Return the mails that are shown."""
        return list(reversed(self._mails.values()))

    def find(self, mail_id: str) -> wire.Entry | None:
        """Return one mail; `latest` is the newest."""
        if mail_id == "latest":
            return next(reversed(self._mails.values()), None)
        return self._mails.get(mail_id)

    def clear(self) -> None:
        """Show none of the mails so far; the ledger keeps them."""
        self._mails.clear()
        self._hidden.write_text(f"{self._written}\n", encoding="ascii")

    def _take_in(self, entry: wire.Entry) -> None:
        self._mails[entry.id] = entry
        if len(self._mails) > KEPT:
            self._mails.popitem(last=False)


def _hidden_lines(path: pathlib.Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


@contextlib.asynccontextmanager
async def opened(path: pathlib.Path) -> AsyncGenerator[Store]:
    """Open the ledger at `path` and read what is in it."""
    async with journal.opened(path) as ledger:
        yield Store(ledger, path.with_name(path.name + ".hidden"), journal.read(path))
