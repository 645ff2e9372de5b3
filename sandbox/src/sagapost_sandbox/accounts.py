"""Chooses the unprivileged user of a server that refuses to run as root, and gets it to its data; does not start anything."""

import os
import pathlib
import pwd
import shutil
import stat
from typing import Final

import msgspec

from sagapost_sandbox import errors

NOBODY: Final = "nobody"
_PROC_STATUS: Final = pathlib.Path("/proc/self/status")
# Bit numbers of linux/capability.h. Reading and searching is all that is needed; where a container withholds that
# capability (Docker does), the wider one serves.
_REACH: Final = (("dac_read_search", 2), ("dac_override", 1))


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def unprivileged(folder: pathlib.Path, *names: str) -> Account | None:
    """Return who shall run a server with its data in `folder`: None means ourselves, for we are not root.

    Data that an ordinary user made stay that user's, even when root starts the server this time.
    """
    if os.geteuid() != 0:
        return None
    if folder.exists() and (uid := folder.stat().st_uid) != 0:
        return _account(pwd.getpwuid(uid))
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in (*names, NOBODY):
        if name in known:
            return _account(known[name])
    raise errors.PermissionsError(
        f"none of the users {', '.join((*names, NOBODY))} exists, and the server refuses to run as root; add one with adduser"
    )


def _account(entry: pwd.struct_passwd) -> Account:
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, groups=groups)


def own_folder(folder: pathlib.Path, account: Account | None) -> None:
    """Make `folder` if need be; only its user may look in.

    Raises:
        PermissionsError: it belongs to somebody else and we are not root.

    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder.stat().st_uid
    if account is None:
        if owner != os.geteuid():
            raise errors.PermissionsError(f"{folder} belongs to user {_name(owner)}; run this as root, or remove the folder as root first")
    elif owner != account.uid:
        os.chown(folder, account.uid, account.gid)
    folder.chmod(0o700)


def write(path: pathlib.Path, text: str, account: Account | None, mode: int = 0o600) -> None:
    """Write a small file that only the server's user may read."""
    path.unlink(missing_ok=True)  # a file of mode 0400 cannot be opened for writing by its own user
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    if account is not None:
        os.chown(path, account.uid, account.gid)


def prefix(account: Account | None, folder: pathlib.Path) -> tuple[str, ...]:
    """Return the words before a command line that run it as `account` with access to `folder`."""
    if account is None:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise errors.PermissionsError("setpriv is not on the PATH; it belongs to util-linux, install it with: apt-get install util-linux")
    identity = (setpriv, f"--reuid={account.uid}", f"--regid={account.gid}", "--init-groups")
    if can_reach(account, folder):
        return (*identity, "--")
    capability = _reaching_capability(account, folder)
    # access(2) sets capabilities aside for a real uid that is not 0, unless this securebit is on (fs/open.c); Erlang asks access(2)
    # whether it may write. The capabilities of root itself are gone with the next exec all the same.
    return (*identity, "--securebits=+no_setuid_fixup", f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}", "--")


def can_reach(account: Account, folder: pathlib.Path) -> bool:
    """Whether the account may search every folder on the way to `folder` and that one itself."""
    absolute = folder.resolve()
    return all(_may_search(account, part.stat()) for part in (absolute, *absolute.parents))


def _may_search(account: Account, status: os.stat_result) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in account.groups:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _reaching_capability(account: Account, folder: pathlib.Path) -> str:
    """Choose the ambient capability that gets a server to a checkout below /root or a folder of mktemp, both of mode 0700."""
    line = next(line for line in _PROC_STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    for name, bit in _REACH:
        if effective >> bit & 1:
            return name
    raise errors.PermissionsError(
        f"user {account.name} cannot reach {folder}, and this container withholds the capability that would let it: "
        "move the checkout to a folder that everybody may enter, for instance below /srv"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
