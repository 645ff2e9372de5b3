"""A private certificate authority for tests of TLS, made with the openssl command."""

import pathlib
import shutil
import subprocess
from typing import Final

import msgspec

_CA: Final = "basicConstraints=critical,CA:TRUE"


class Authority(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate authority and the one server certificate that it has signed; PEM files."""

    ca: pathlib.Path
    certificate: pathlib.Path
    key: pathlib.Path


def make(folder: pathlib.Path, host: str) -> Authority:
    """Make an authority and its certificate for one host name."""
    folder.mkdir()
    made = Authority(ca=folder / "ca.pem", certificate=folder / "server.pem", key=folder / "server.key")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    _openssl(*new, "-keyout", folder / "ca.key", "-out", made.ca, "-subj", f"/CN=authority of {folder.name}", "-addext", _CA)
    signed = ("-CA", made.ca, "-CAkey", folder / "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
    _openssl(*new, *signed, "-keyout", made.key, "-out", made.certificate, "-subj", "/CN=server", "-addext", f"subjectAltName=DNS:{host}")
    return made


def _openssl(*arguments: str | pathlib.Path) -> None:
    done = subprocess.run([shutil.which("openssl") or "openssl", *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
