"""Every setting that the code reads, and what docs/settings.md says of it; it starts nothing."""

import pathlib
import re
from typing import Final

import msgspec

import sagapost_email.settings
import sagapost_gateway.settings
import sagapost_order.settings
import sagapost_payment.settings
import sagapost_relay.settings
import sagapost_sandbox.mailbox.settings
import sagapost_sandbox.provider.settings
from sagapost_chassis import settings
from sagapost_contracts import topology
from sagapost_ops import passwords, roles
from sagapost_ops.topology import accounts
from sagapost_sandbox import logfiles

ROOT: Final = pathlib.Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "settings.md"
PROCESSES: Final[dict[str, type[settings.Common]]] = {
    "gateway": sagapost_gateway.settings.Settings,
    "order": sagapost_order.settings.Settings,
    "payment": sagapost_payment.settings.Settings,
    "email": sagapost_email.settings.Settings,
    "relay": sagapost_relay.settings.Settings,
    "provider (sandbox)": sagapost_sandbox.provider.settings.Settings,
    "mailbox (sandbox)": sagapost_sandbox.mailbox.settings.Settings,
}
# read past the Structs: by the entry point, the commands, and whatever runs migrations
COMMANDS: Final = {
    "SAGAPOST_ORDER_DATABASE_URL": "the running stack",
    "SAGAPOST_PAYMENT_DATABASE_URL": "the running stack",
    "SAGAPOST_AMQP_URL": "the running stack",
    "SAGAPOST_MANAGEMENT_URL": "the running stack",
    "SAGAPOST_PROVIDER_URL": "the running stack",
    "SAGAPOST_MAILBOX_URL": "the running stack",
    "SAGAPOST_GATEWAY_URL": "the running stack",
    "SAGAPOST_API_KEY": "none",
    passwords.COOKIE: "none",
    "SAGAPOST_MIGRATIONS": "`migrations`",
    "SAGAPOST_STATE": "`.sagapost`",
    "SAGAPOST_PORT_OFFSET": "`0`",
    "SAGAPOST_LOG_BYTES": f"`{logfiles.BYTES}`",
    "SAGAPOST_LOGS_KEPT": f"`{logfiles.KEPT}`",
    "SAGAPOST_PYTHON": "the first Python 3.11 or newer on PATH",
}
BEFORE: Final = {
    "commands": "When one of the first seven is set, only what is set counts; otherwise the running stack.\n\n",
    "compose.yaml": "What the compose files put in where the environment says nothing else.\n\n",
}


def known() -> dict[str, dict[str, str]]:
    """Return variables and their defaults, as the page writes them, by section."""
    common = {field.name for field in msgspec.structs.fields(settings.Common)}
    found = {"every process": {**_fields(settings.Common, set()), "SAGAPOST_CRASH": "none"}}
    found |= {name: _fields(cls, common - {"port"}) for name, cls in PROCESSES.items()}
    found["commands"] = COMMANDS | {
        **{roles.variable(role.name): _shown(roles.development_password(role.name)) for role in roles.ROLES},
        **{accounts.variable(user.name): _shown(accounts.development_password(user.name)) for user in topology.USERS},
    }
    return found | {"compose.yaml": _compose()}


def told() -> dict[str, dict[str, tuple[str, str]]]:
    """Return what the page says: default and sentence of each variable, by section."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    row = re.compile(r"^\| `(SAGAPOST_[A-Z0-9_]+)` \| (.*?) \| (.*) \|$", re.MULTILINE)
    return {text.partition("\n")[0]: {name: (default, what) for name, default, what in row.findall(text)} for text in sections}


def names() -> set[str]:
    """Return every variable that is read."""
    return {name for section in known().values() for name in section}


def mentioned(text: str) -> set[str]:
    """Return the variables that a text names in full; NAME_FILE counts as NAME."""
    read = names()
    found = set(re.findall(r"(?<![A-Z0-9_])SAGAPOST_[A-Z0-9_]*[A-Z0-9](?![A-Z0-9_…*])", text))
    return {name if name in read else name.removesuffix(settings.FROM_FILE) for name in found}


def _fields(cls: type[settings.Common], without: set[str]) -> dict[str, str]:
    fields = [field for field in msgspec.structs.fields(cls) if field.name not in without]
    return {settings.PREFIX + field.name.upper(): "required" if field.required else _shown(field.default) for field in fields}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if value != "" else "none"


def _compose() -> dict[str, str]:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("compose.yaml", "compose.cluster.yaml", "compose.private.yaml"))
    text = re.sub(r"^ *SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS:.*$", "", text, flags=re.MULTILINE)  # a condition, not a default
    found = re.findall(r"\$\{(SAGAPOST_\w+):-([^}$]*)\}", text)
    return {name: f"`{default}`" if default else "none" for name, default in sorted(set(found))}
