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


def make(api: management.Management, vhost: str, chosen: Mapping[str, str]) -> int:
    """Make every user with these passwords and exactly the contract's rights in this virtual host; return how many.

    Raises:
        UnfitError: the interface does not answer, or does not let this user do it.

    """
    try:
        for user in topology.USERS:
            management.put_user(api, user.name, chosen[user.name])
            topics = {} if user.topics is None else {topology.EXCHANGE: user.topics}
            management.permit_topics(api, vhost, user.name, topics)
            rights = management.Rights(configure=user.configure, write=user.write, read=user.read)
            management.permit(api, vhost, user.name, rights)
    except (OSError, http.client.HTTPException, sandbox_errors.ManagementError) as exc:
        raise found.cannot(api, exc) from exc
    return len(topology.USERS)
