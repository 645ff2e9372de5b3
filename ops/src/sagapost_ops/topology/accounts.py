"""The broker's users of the services: their passwords from the environment, their making; it must not know what they may do."""

import http.client
from collections.abc import Mapping
from typing import Final

from sagapost_contracts import topology
from sagapost_ops import passwords as deployed
from sagapost_ops.topology import found
from sagapost_sandbox import errors as sandbox_errors
from sagapost_sandbox import management

PREFIX: Final = "SAGAPOST_BROKER_PASSWORD_"


def variable(name: str) -> str:
    """Name the variable that holds a user's password."""
    return PREFIX + name.replace("-", "_").upper()


def development_password(name: str) -> str:
    """Give the password that a user has where nobody set one; refused in production."""
    return f"{name}-password"


def passwords(environ: Mapping[str, str]) -> dict[str, str]:
    """Read every user's password; with SAGAPOST_ENV=production none may be missing or weak.

    Raises:
        UnfitError: names every variable that is.

    """
    return deployed.chosen(environ, (user.name for user in topology.USERS), variable, development_password)


def make(api: management.Management, vhost: str, chosen: Mapping[str, str], older: frozenset[str] = frozenset()) -> int:
    """Make every user with these passwords and exactly the contract's rights in this virtual host; return how many.

    Users in `older` may also write where consumers of generation 1 do.

    Raises:
        UnfitError: the interface does not answer, or does not let this user do it.

    """
    try:
        for user in topology.USERS:
            management.put_user(api, user.name, chosen[user.name])
            topics = {} if user.topics is None else {topology.EXCHANGE: user.topics}
            management.permit_topics(api, vhost, user.name, topics)
            write = user.older_write if user.older_write and user.name in older else user.write
            management.permit(api, vhost, user.name, management.Rights(configure=user.configure, write=write, read=user.read))
    except (OSError, http.client.HTTPException, sandbox_errors.ManagementError) as exc:
        raise found.cannot(api, exc) from exc
    return len(topology.USERS)


def kept(api: management.Management, vhost: str) -> frozenset[str]:
    """Return the users that keep the rights of generation 1: they have them, and a consumer of that generation is connected.

    A right that was taken away once is not given back by this, whoever is connected.

    Raises:
        UnfitError: the interface does not answer, or does not let this user read.

    """
    wide = {right.user for right in found.permissions(api, vhost) if right.write in _before(right.user)}
    return frozenset(wide & found.older_clients(api, vhost)) if wide else frozenset()


def _before(name: str) -> set[str]:
    users = [user for user in topology.USERS if user.name == name]
    return {write for user in users for write in (user.older_write, topology.FIRST_WRITES.get(name)) if write}
