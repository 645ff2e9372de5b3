"""Text from outside on the operator's terminal: every command that prints stored text, with hostile text in every stored field."""

import contextlib
import itertools
import json
import pathlib
from collections.abc import Callable, Generator, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote

import pytest
import rich_click as click
from integration import hostile_world, ops_books, state_folder, test_ops_dlq_desk
from integration.hostile_world import SHOWN, Column, World
from psycopg import conninfo

from sagapost_contracts import topology
from sagapost_ops import cli, database, targets
from sagapost_ops.dlq import choice, run
from sagapost_sandbox import ports
from sagapost_sandbox.testing import servers, services

QUEUE: Final = topology.PAYMENT_QUEUE
ORDERS: Final = (
    "saga list",
    "saga show 1",
    "saga history 1",
    "saga retry 1 --reason x",
    "verify --settle 0",
    "restored --order",
    "restored --payment",
)
# the commands that read a table, whatever it is made to hold
WALK: Final[Mapping[str, tuple[str, ...]]] = {
    "orders": (*ORDERS, "erase --email verify@example.com"),
    "order_items": ORDERS,
    "sagas": (*ORDERS, "saga compensate 1 --reason x", "saga waive-notify 1 --reason x", "saga mark-refunded 1 --reason x --reference y"),
    "saga_history": ORDERS,
    "idempotency_keys": ORDERS,
    "payments": ORDERS,
    "ledger": ORDERS,
    "duplicate_charges": ORDERS,
    "clients": ("keys list", "keys revoke 1"),
    "api_keys": ("keys list", "keys revoke 1"),
    "outbox": ("outbox stats", "outbox replay --since 1d", "outbox repair --force", "verify --settle 0"),
    "outbox_parked": ("outbox stats", "outbox list", "outbox retry --reason nacked", "verify --settle 0"),
    "outbox_cursor": ("outbox stats",),
    "outbox_relay": ("outbox stats",),
    "inbox": ("verify --settle 0", "retain --dry-run"),
    "alembic_version": ("migrate status",),
}
BY_HAND: Final = run.Request(kind="replay", queue=QUEUE, wanted=choice.Choice(), actor=hostile_world.HOSTILE, reason=hostile_world.HOSTILE)
ELSEWHERE: Final = (
    "dlq list",
    "dlq groups",
    f"dlq show {QUEUE}",
    f"dlq replay {QUEUE} --all",
    f"dlq discard {QUEUE} --all",
    "topology check",
    "logs",
    "verify --settle 0",
    f"dlq replay {QUEUE} --all --settle 0 --yes --reason x",
)
# what of it is shown, by parts that are tried one after the other
PARTS: Final[Mapping[str, frozenset[str]]] = {
    "orders": frozenset({"verify --settle 0"}),
    "sagas": frozenset({"saga list", "saga show 1"}),
    "saga_history": frozenset({"saga history 1", "saga show 1"}),
    "payments": frozenset({"verify --settle 0", "restored --order"}),
    "outbox": frozenset({"outbox stats", "outbox list", "outbox replay --since 1d"}),
    "others": frozenset({"keys list", "migrate status"}),
}
# they print what no client, operator or message has written
NOTHING_STORED: Final = {
    "up": "addresses of this machine",
    "down": "the folder of the stack",
    "restart": "what the supervisor did",
    "status": "the state file and versions of this checkout",
    "doctor": "what this machine has",
    "test": "pytest's own output",
    "demo": "one order that it makes itself",
    "load": "its own figures",
    "chaos": "its own figures",
    "bench relay": "its own figures",
    "completion": "a script",
    "keys create": "the key that it makes",
    "migrate up": "revisions of this checkout",
    "topology declare": "names of this checkout",
    "topology show": "names of this checkout",
    "dlq export": "how many letters it wrote; the file is looked at below",
}


class Admin(NamedTuple):
    """The administrator of the databases' server, and where the gateway is."""

    dsn: str
    gateway_url: str


@pytest.fixture
def urls(order_db: str, payment_db: str, provider: services.Service, mailbox: services.Service) -> dict[str, str]:
    """Write one finished order into both databases, and what was set aside."""
    ops_books.write(order_db, payment_db, provider, mailbox)
    made = {"order": order_db, "payment": payment_db}
    hostile_world.write_outboxes(made)
    return made


@pytest.fixture
def admin(database_server: servers.Databases, order_db: str, start_service: Callable[[str, Mapping[str, str]], services.Service]) -> Admin:
    """Run an order service and a gateway over the books; who may change anything in these is the server's administrator."""
    env = {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"}
    order = start_service("order", env).wait_ready()
    gateway = start_service("gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready()
    return Admin(database_server.admin_dsn, gateway.url)


@pytest.fixture
def desk(
    urls: dict[str, str], vhost: str, broker: servers.Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Generator[None]:
    """Fill the broker with what is hostile, and let every command find it."""
    api = broker.management
    monkeypatch.setenv("SAGAPOST_MANAGEMENT_URL", f"http://{api.user}:{api.password}@{api.host}:{api.port}")
    hostile_world.bind(api, quote(vhost.rpartition("/")[2], safe=""))
    with test_ops_dlq_desk.opened(urls["order"], urls["payment"], vhost, monkeypatch, capsys) as made:
        hostile_world.write_letters(made)
        yield


@pytest.fixture
def world(
    urls: dict[str, str], admin: Admin, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Generator[World]:
    """Let every command find databases, gateway and logs."""
    state_folder.write(tmp_path / "state", targets.Targets(), monkeypatch)
    hostile_world.write_log(tmp_path / "state")
    monkeypatch.setenv("SAGAPOST_GATEWAY_URL", admin.gateway_url)
    for name, url in urls.items():
        monkeypatch.setenv(f"SAGAPOST_{name.upper()}_DATABASE_URL", url)
    owned = {name: conninfo.make_conninfo(admin.dsn, dbname=url.rpartition("/")[2]) for name, url in urls.items()}
    with contextlib.closing(World(owned, monkeypatch, capsys)) as made:
        assert made.call("keys create --client shop --label web --reason x").code == 0
        made.prepare()
        yield made


def _leaves(group: click.Group, *names: str) -> Generator[str]:
    for name in group.list_commands(click.Context(group)):
        _, command, _ = group.resolve_command(click.Context(group), [name])
        if isinstance(command, click.Group):
            yield from _leaves(command, *names, name)
        else:
            yield " ".join((*names, name))


def test_the_walk_has_every_command() -> None:
    """A new command stands in the walk, or in the list of those that print nothing stored."""
    walked = {*itertools.chain(*WALK.values(), ELSEWHERE)}
    leaves = set(_leaves(cli.main))

    assert {leaf for leaf in leaves if not any(f"{line} ".startswith(f"{leaf} ") for line in walked)} == set(NOTHING_STORED)


def _part(table: str) -> str:
    """Name the part that a table belongs to."""
    whole = {"order_items": "orders", "idempotency_keys": "orders", "ledger": "payments", "duplicate_charges": "payments"}.get(table, table)
    return whole if whole in PARTS else "outbox" if table.startswith("outbox") else "others"


def _groups(columns: list[Column]) -> list[list[Column]]:
    """Put free columns of a table together; one that a constraint or a key bound may end a command, and is tried alone."""
    free = [column for column in columns if not column.is_bound]
    tables = itertools.groupby(free, key=lambda column: (column.database, column.table))
    return [*([column] for column in columns if column.is_bound), *(list(members) for _, members in tables)]


@pytest.mark.parametrize("part", sorted(PARTS))
def test_no_stored_text_is_obeyed_by_a_terminal(world: World, part: str) -> None:
    """Column by column and table by table: no control, bidirectional or invisible character, no forged line, and what it holds is shown."""
    shows: set[str] = set()
    for group in _groups([column for column in world.columns if _part(column.table) == part]):
        hows = ("",) if group[0].is_bound else ("", " --json")
        world.poison(group)
        for one in [world.call(f"{line}{how}") for line in WALK.get(group[0].table, ()) for how in hows]:
            assert not one.acts, (group, one)
            if SHOWN in one.out + one.err:
                shows.add(one.line)
        world.heal(group)

    assert shows >= PARTS[part]


@pytest.mark.usefixtures("desk")
def test_no_dead_letter_binding_or_log_line_is_obeyed_by_a_terminal(world: World, urls: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Headers, properties and bodies of dead letters, keys of bindings, lines of logs; JSON and exports keep their values."""
    exported = world.call(f"dlq export {QUEUE} --out {tmp_path / 'letters.jsonl'}")
    runs = [world.call(f"{line}{how}") for line in ELSEWHERE for how in ("", " --json")]
    with database.opened(urls["order"], "test", writing=True) as conn, run.recorded(conn, BY_HAND):
        refused = world.call(f"dlq replay {QUEUE} --all --yes --reason x")
    file = (tmp_path / "letters.jsonl").read_text(encoding="utf-8")

    assert not [one for one in (*runs, refused) if one.acts]
    assert SHOWN in refused.err
    shown = {one.line for one in runs if SHOWN in one.out + one.err}
    assert shown >= {line for line in ELSEWHERE if not line.endswith("--reason x") and not line.startswith("verify")}
    assert exported.code == 0
    assert not hostile_world.Run("", 0, file, "").acts
    assert json.loads(file)["headers"]["x-exception-message"] == hostile_world.HOSTILE
    letters = next(json.loads(one.out) for one in runs if one.line == f"dlq show {QUEUE} --json")
    assert letters[0]["headers"]["x-fingerprint"] == hostile_world.HOSTILE
