"""Where the commands find databases and broker: flags, then the environment, then the running stack; it must not connect."""

from typing import Final

import msgspec

from sagapost_chassis import production, urls
from sagapost_ops import environment, errors, state

DATABASES: Final = ("order", "payment")
VARIABLES: Final = {
    "order_database_url": "SAGAPOST_ORDER_DATABASE_URL",
    "payment_database_url": "SAGAPOST_PAYMENT_DATABASE_URL",
    "amqp_url": "SAGAPOST_AMQP_URL",
    "management_url": "SAGAPOST_MANAGEMENT_URL",
    "provider_url": "SAGAPOST_PROVIDER_URL",
    "mailbox_url": "SAGAPOST_MAILBOX_URL",
    "gateway_url": "SAGAPOST_GATEWAY_URL",
}
_RULES: Final[dict[str, production.Rule]] = {
    "order_database_url": production.database,
    "payment_database_url": production.database,
    "amqp_url": production.broker,
    "management_url": production.https,
}


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """URLs; None for what this call does not know of."""

    order_database_url: str | None = None
    payment_database_url: str | None = None
    amqp_url: str | None = None
    management_url: str | None = None
    provider_url: str | None = None
    mailbox_url: str | None = None
    gateway_url: str | None = None


def find(port_offset: int) -> Targets:
    """Read the environment when it names anything, otherwise the running stack: the two are never mixed.

    Raises:
        NothingMatchedError: neither is there.
        UnfitError: a file that a variable names cannot be read, SAGAPOST_ENV is neither mode, or in production a connection is weak.

    """
    is_production = environment.is_production()
    given = named()
    if not given:
        return of_stack(state.running(port_offset))
    if is_production:
        weak = [f"refused in production: {VARIABLES[name]}: {reason}" for name, url in given.items() for reason in _weak(name, url)]
        if weak:
            raise errors.of_all(weak)
    return Targets(**given)


def named() -> dict[str, str]:
    """Return the addresses that the environment names, by field of Targets.

    Raises:
        UnfitError: a file that a variable names cannot be read, or an address is not clear.

    """
    found = {field: url for field, variable in VARIABLES.items() if (url := environment.read(variable))}
    reasons = {field: urls.fault(url, words=field.endswith("database_url")) for field, url in found.items()}
    if faults := [f"{VARIABLES[field]} {reason}" for field, reason in reasons.items() if reason]:
        raise errors.of_all(faults)
    return found


def _weak(name: str, url: str) -> list[str]:
    rule = _RULES.get(name)
    return rule(url) if rule else []


def of_stack(found: state.State) -> Targets:
    """Take everything from a running stack."""
    return msgspec.convert(msgspec.to_builtins(found.addresses), Targets)


def databases(port_offset: int, only: str | None) -> list[tuple[str, str]]:
    """Give name and URL of both databases, or of `only` one.

    Raises:
        NothingMatchedError: nothing is known.
        UnfitError: one of them is not.

    """
    found = find(port_offset)
    return [(name, need(found, f"{name}_database_url")) for name in (DATABASES if only is None else (only,))]


def need(found: Targets, field: str) -> str:
    """Give one URL.

    Raises:
        UnfitError: it is not known.

    """
    url = getattr(found, field)
    if not isinstance(url, str):
        raise errors.UnfitError(
            f"{VARIABLES[field]} is not set although others of its kind are; set it, or unset those to use the running stack"
        )
    return url
