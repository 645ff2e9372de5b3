"""Looks for what must stand in no log, no metric and no list of processes: addresses, card numbers, passwords, forged lines."""

import contextlib
import json
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Final

from sagapost_chassis import privacy
from sagapost_sandbox import processes

_ADDRESS: Final = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
_FINGERPRINT: Final = re.compile(r"\b[A-Z][A-Za-z0-9]*@[a-z_][a-z0-9_]*\.py\b")  # an exception and its file: CheckViolation@queries.py
_DIGITS: Final = re.compile(r"\d(?:[ -]?\d){12,18}(?![\w.-])")
_WITHIN: Final = re.compile(r"[\w.-]")  # in front of a number that is part of a word: the hexadecimal digits of a trace id


def leaks(texts: Mapping[str, str], words: Collection[str] = ()) -> list[str]:
    """Name each address, card number and one of `words` in texts, with the name of the text; numbers count too."""
    found: list[str] = []
    for name, text in texts.items():
        found += [f"{name}: the address {address}" for address in sorted(_addresses(text))]
        found += [f"{name}: the card number {number}" for number in sorted(_numbers(text)) if privacy.is_card(number)]
        found += [f"{name}: {word}" for word in words if word in text]
    return found


def _addresses(text: str) -> set[str]:
    """Find addresses, and look only at lines that can hold one: a run of the whole suite leaves tens of megabytes."""
    return (
        {address for line in text.split("\n") if "@" in line for address in _ADDRESS.findall(_FINGERPRINT.sub("", line))}
        if "@" in text
        else set()
    )


def _numbers(text: str) -> set[str]:
    return {match.group() for match in _DIGITS.finditer(text) if not _WITHIN.match(text[match.start() - 1 : match.start()])}


def forged(texts: Mapping[str, str], event: str) -> list[str]:
    """Name each line that is not one JSON document of ours, or is the one that an attacker would have written, with this event."""
    found: list[str] = []
    for name, text in texts.items():
        for line in text.split("\n"):
            try:
                document = json.loads(line) if line else {"event": "", "level": "", "at": ""}
                ours = {"event", "level", "at"} <= document.keys() and document["event"] != event
            except (ValueError, AttributeError):
                ours = False
            if not ours or not line.isprintable():
                found.append(f"{name}: {line[:200]!r}")
    return found


def files(*folders: pathlib.Path) -> dict[str, str]:
    """Read every log in folders, those of the servers below them included."""
    return {str(path): path.read_text(encoding="utf-8", errors="replace") for folder in folders for path in sorted(folder.rglob("*.log"))}


def command_lines(folder: pathlib.Path) -> dict[str, str]:
    """Read the command lines of the processes that work in a folder."""
    found: dict[str, str] = {}
    for pid in processes.below(folder):
        with contextlib.suppress(OSError):
            found[f"process {pid}"] = pathlib.Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    return found
