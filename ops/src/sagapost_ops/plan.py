"""What a stack consists of, as data: ports, processes, their variables and their order; it starts nothing."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Literal

import msgspec

from sagapost_contracts import topology as words
from sagapost_ops import roles, state
from sagapost_ops.topology import accounts

PUBLIC: Final = {"gateway": 9000, "page": 3000, "order": 8001, "payment": 8002, "email": 8003, "provider": 8004, "mailbox": 8026}
MOVABLE: Final = {
    "order-db": 5433,
    "payment-db": 5434,
    "rabbitmq": 5672,
    "rabbitmq-management": 15672,
    "epmd": 4369,
    "distribution": 25672,
    "smtp": 1025,
    "relay-order": 8011,
    "relay-payment": 8012,
}
METRICS_PORT: Final = 9464
MEASURED: Final = ("gateway", "order", "payment", "email", "relay-order", "relay-payment")
SCALED: Final = ("payment", "email", "relay-order", "relay-payment")
DATABASES: Final = {  # of the owners, who are the operator's; each service has a role of its own, see roles
    "order-db": ("order_user", "order_password", "order_db"),
    "payment-db": ("payment_user", "payment_password", "payment_db"),
}
BROKER_USER: Final = ("ecommerce", "ecommerce123")  # the operator's; each service has its own, see amqp_url
LISTENING: Final = ("SAGAPOST_PORT", "SAGAPOST_PAGE_PORT", "SAGAPOST_METRICS_PORT")
HIGHEST_OFFSET: Final = 39_000  # 25672 is the highest port, and 65535 the last

# How nice a module's processes are. A receipt can wait where a payment should not: after an outage payments catch up first.
PATIENT: Final = {"sagapost_email": 10, "sagapost_sandbox.mailbox": 10}
OUTSIDE: Final = 2  # the stage of what belongs to somebody else where customers are

How = Literal["database", "broker", "task", "program"]
NextFree = Callable[[int, Collection[int]], int]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` was asked for; delays in seconds."""

    port_offset: int = 0
    payment_delay_s: float = 1.0
    email_delay_s: float = 2.0
    workers: int = 1


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to start: how, with what, after which others, and in which stage it is stopped (1 is last).

    `listens` names the ports of a service of ours, which stay open while its processes replace each other. `nice` (0 to 19)
    is how far it stands back where processors are scarce.
    """

    name: str
    how: How
    stage: int
    arguments: tuple[str, ...] = ()
    environ: dict[str, str] = {}
    port: int = 0
    kind: state.Kind = "health"
    requires: tuple[str, ...] = ()
    listens: tuple[int, ...] = ()
    nice: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole stack, ready to be started."""

    options: Options
    ports: dict[str, int]
    addresses: state.Addresses
    units: tuple[Unit, ...]


def public_ports(port_offset: int) -> dict[str, int]:
    """Name the ports that people and scripts rely on, and that therefore never move."""
    return {name: port + port_offset for name, port in PUBLIC.items()}


def choose_ports(options: Options, next_free: NextFree) -> dict[str, int]:
    """Give every port of the stack; those nobody relies on move to the next free one."""
    chosen = public_ports(options.port_offset)
    wanted = {name: port + options.port_offset for name, port in MOVABLE.items()}
    wanted |= {f"{name}-metrics": METRICS_PORT + options.port_offset + nth for nth, name in enumerate(MEASURED)}
    for number in range(2, options.workers + 1):
        wanted |= {f"{name}-{number}": 8020 + options.port_offset + 10 * number for name in SCALED}
        wanted |= {f"{name}-{number}-metrics": METRICS_PORT + options.port_offset + 10 * number for name in SCALED}
    for name, port in wanted.items():
        chosen[name] = next_free(port, tuple(chosen.values()))
    return chosen


def addresses(ports: dict[str, int]) -> state.Addresses:
    """Build the URLs that the processes and the commands connect to."""
    user, password = BROKER_USER
    return state.Addresses(
        gateway_url=f"http://127.0.0.1:{ports['gateway']}",
        order_database_url=_database_url("order-db", ports),
        payment_database_url=_database_url("payment-db", ports),
        amqp_url=amqp_url(ports, BROKER_USER),
        management_url=f"http://{user}:{password}@127.0.0.1:{ports['rabbitmq-management']}",
        provider_url=f"http://127.0.0.1:{ports['provider']}",
        mailbox_url=f"http://127.0.0.1:{ports['mailbox']}",
    )


def amqp_url(ports: dict[str, int], account: tuple[str, str]) -> str:
    """Build the broker's URL for a user with a password."""
    return f"amqp://{account[0]}:{account[1]}@127.0.0.1:{ports['rabbitmq']}/"


def _database_url(name: str, ports: dict[str, int]) -> str:
    user, password, _ = DATABASES[name]
    return database_url(name, ports, (user, password))


def database_url(name: str, ports: dict[str, int], account: tuple[str, str]) -> str:
    """Build a database's URL for a role with a password."""
    return f"postgresql://{account[0]}:{account[1]}@127.0.0.1:{ports[name]}/{DATABASES[name][2]}"


def make(options: Options, ports: dict[str, int], home: Path) -> Plan:
    """Lay out the stack: infrastructure, what prepares it, the outside world, the services."""
    where = addresses(ports)
    infrastructure = (
        Unit(name="order-db", how="database", stage=1, port=ports["order-db"], kind="postgres"),
        Unit(name="payment-db", how="database", stage=1, port=ports["payment-db"], kind="postgres"),
        Unit(name="rabbitmq", how="broker", stage=1, port=ports["rabbitmq"], kind="rabbitmq"),
    )
    units = (*infrastructure, *_preparations(where), *_outside(options, ports, home), *_services(options, ports, where, home))
    return Plan(options=options, ports=ports, addresses=where, units=units)


def _preparations(where: state.Addresses) -> tuple[Unit, ...]:
    passwords = {accounts.variable(user.name): accounts.development_password(user.name) for user in words.USERS}
    urls = {"SAGAPOST_ORDER_DATABASE_URL": where.order_database_url, "SAGAPOST_PAYMENT_DATABASE_URL": where.payment_database_url}
    return (
        Unit(
            name="migrate",
            how="task",
            stage=2,
            arguments=("sagapost_ops", "migrate", "up", "--roles", "--wait", "60"),
            environ=urls | {roles.variable(role.name): roles.development_password(role.name) for role in roles.ROLES},
        ),
        Unit(
            name="topology",
            how="task",
            stage=2,
            arguments=("sagapost_ops", "topology", "declare", "--users", "--wait", "60"),
            environ={"SAGAPOST_AMQP_URL": where.amqp_url, "SAGAPOST_MANAGEMENT_URL": where.management_url} | passwords,
        ),
    )


def _outside(options: Options, ports: dict[str, int], home: Path) -> tuple[Unit, ...]:
    provider = {
        "SAGAPOST_PROVIDER_LEDGER": str(home / "ledgers" / "provider.jsonl"),
        "SAGAPOST_PROVIDER_DELAY_S": f"{options.payment_delay_s:g}",
    }
    mailbox = {
        "SAGAPOST_SMTP_PORT": str(ports["smtp"]),
        "SAGAPOST_MAILBOX_LEDGER": str(home / "ledgers" / "mailbox.jsonl"),
        "SAGAPOST_MAILBOX_DELAY_S": f"{options.email_delay_s:g}",
        "SAGAPOST_SHOP_URL": f"http://localhost:{ports['gateway']}/",
    }
    return (
        _program("provider", ports, provider, module="sagapost_sandbox.provider", stage=OUTSIDE),
        _program("mailbox", ports, mailbox, module="sagapost_sandbox.mailbox", stage=OUTSIDE),
    )


def _secret(home: Path) -> dict[str, str]:
    """Return the variable for the secret of this stack; none for a stack that was started by a version without, and is restarted."""
    return {"SAGAPOST_INTERNAL_SECRET_FILE": str(home / state.INTERNAL)} if (home / state.INTERNAL).exists() else {}


def _services(options: Options, ports: dict[str, int], where: state.Addresses, home: Path) -> tuple[Unit, ...]:
    secret = _secret(home)
    edge = secret | {
        "SAGAPOST_ORDER_URL": f"http://127.0.0.1:{ports['order']}",
        "SAGAPOST_PAGE_PORT": str(ports["page"]),
        "SAGAPOST_MAILBOX_URL": f"http://localhost:{ports['mailbox']}",
    }
    scaled = {
        "payment": _database(ports, "payment_service") | {"SAGAPOST_PROVIDER_URL": where.provider_url},
        "email": secret
        | {
            "SAGAPOST_SMTP_HOST": "127.0.0.1",
            "SAGAPOST_SMTP_PORT": str(ports["smtp"]),
            "SAGAPOST_MAIL_MEMORY": str(home / "mail-memory"),
            "SAGAPOST_ORDER_URL": f"http://127.0.0.1:{ports['order']}",
        },
        "relay-order": _database(ports, "order_relay"),
        "relay-payment": _database(ports, "payment_relay"),
    }
    both = ("migrate", "topology")
    return (
        _program("order", ports, _database(ports, "order_service") | _broker(ports, "order") | secret, requires=both),
        *(
            _program(
                name if number == 1 else f"{name}-{number}",
                ports,
                scaled[name] | _broker(ports, name),
                requires=("topology",) if name == "email" else both,
                module=f"sagapost_{name.partition('-')[0]}",
            )
            for number in range(1, options.workers + 1)
            for name in SCALED
        ),
        _program("gateway", ports, edge, stage=4),
    )


def _database(ports: dict[str, int], role: str) -> dict[str, str]:
    database = role.partition("_")[0]
    return {"SAGAPOST_DATABASE_URL": database_url(f"{database}-db", ports, (role, roles.development_password(role)))}


def _broker(ports: dict[str, int], user: str) -> dict[str, str]:
    return {"SAGAPOST_AMQP_URL": amqp_url(ports, (user, accounts.development_password(user)))}


def _program(
    name: str,
    ports: dict[str, int],
    environ: dict[str, str],
    *,
    module: str = "",
    requires: tuple[str, ...] = (),
    stage: int = 3,
) -> Unit:
    variables = {
        "SAGAPOST_HOST": "127.0.0.1",
        "SAGAPOST_PORT": str(ports[name]),
        "SAGAPOST_METRICS_PORT": str(ports.get(f"{name}-metrics", 0)),
    }
    variables |= environ
    return Unit(
        name=name,
        how="program",
        stage=stage,
        arguments=(module or f"sagapost_{name}",),
        environ=variables,
        port=ports[name],
        requires=requires,
        listens=() if stage == OUTSIDE else tuple(port for name in LISTENING if (port := int(variables.get(name, 0)))),
        nice=PATIENT.get(module, 0),
    )
