"""The environment of the peers: made once from locks/bench.txt, found again as long as that list stays; must not know a peer."""

import os
import pathlib
import shutil
import sys
import zlib
from typing import Final

from benchmarks.relay import contenders
from sagapost_sandbox import processes

LIST: Final = contenders.ROOT / "locks" / "bench.txt"
INSTALL_S: Final = 300.0
_TAIL: Final = 400


class MissingError(RuntimeError):
    """The peers cannot be installed; the sentence says why."""


def ensure(folder: pathlib.Path) -> pathlib.Path:
    """Make the environment unless it is there; give its interpreter.

    Raises:
        MissingError: neither uv nor pip could install the list.

    """
    python, stamp = folder / "bin" / "python", folder / "made-from"
    made_from = f"{zlib.crc32(LIST.read_bytes()):08x} {sys.version_info.major}.{sys.version_info.minor}"
    if stamp.exists() and stamp.read_text(encoding="ascii") == made_from and python.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", folder])
    try:
        _run([_uv(), "pip", "sync", "--quiet", "--python", python, "--require-hashes", LIST])
    except MissingError:
        # pip reads the index that this machine's user has chosen for it, which uv does not
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", LIST])
    stamp.write_text(made_from, encoding="ascii")
    return python


def versions() -> dict[str, str]:
    """Read the pinned versions that the report names."""
    pins = [line.split(" ")[0].split("==") for line in LIST.read_text(encoding="utf-8").splitlines() if "==" in line]
    return {name: version for name, version in pins if name in {"txoutbox", "faststream-outbox", "faststream", "aio-pika", "asyncpg"}}


def _uv() -> str | pathlib.Path:
    beside = pathlib.Path(sys.executable).with_name("uv")
    return beside if beside.exists() else shutil.which("uv") or beside


def _run(arguments: list[str | pathlib.Path]) -> None:
    done = processes.run(arguments, env=os.environ, timeout_s=INSTALL_S)
    if done.code != 0:
        raise MissingError(" ".join(done.output[-_TAIL:].split()) or f"{arguments[0]} ended with {done.code}")
