"""Looks for what must stand in no log, no metric and no list of processes: addresses, card numbers, passwords, forged lines."""

import json
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Final

from sagapost_chassis import privacy
from sagapost_sandbox import processes

_ADDRESS: Final = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
# a word of its own: the hexadecimal digits of a trace id may hold a run of decimal ones
_DIGITS: Final = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w.-])")


def leaks(texts: Mapping[str, str], words: Collection[str] = ()) -> list[str]:
    """Name each address, card number and one of `words` in texts, with the name of the text; numbers count too."""
    found: list[str] = []
    for name, text in texts.items():
        found += [f"{name}: the address {address}" for address in sorted(set(_ADDRESS.findall(text)))]
        found += [f"{name}: the card number {number}" for number in sorted(set(_DIGITS.findall(text))) if privacy.is_card(number)]
        found += [f"{name}: {word}" for word in words if word in text]
    return found


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
    for pid in processes.pids():
        try:
            if pathlib.Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder):
                found[f"process {pid}"] = pathlib.Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
    return found
