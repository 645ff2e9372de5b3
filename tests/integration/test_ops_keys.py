"""`keys`: what the command stores, shows and refuses, and that what it printed opens the door of a gateway."""

import json
import re
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest
from integration import order_walk

from sagapost_contracts import access
from sagapost_ops import cli
from sagapost_sandbox.testing import services

CART = {"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}


class Run(NamedTuple):
    """How a call of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The document on standard output."""
        return dict(json.loads(self.out))


Call = Callable[..., Run]
Start = Callable[[str, Mapping[str, str]], services.Service]


@pytest.fixture
def call(order_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Give what calls the command line on this test's database, in this process."""
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL", order_db)
    monkeypatch.delenv("SAGAPOST_ENV", raising=False)

    def called(*arguments: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["./sagapost", *arguments])
        capsys.readouterr()
        code = cli.run()
        return Run(code, *capsys.readouterr())

    return called


@pytest.fixture
def conn(order_db: str) -> Generator[psycopg.Connection]:
    """Connect past the command."""
    with psycopg.connect(order_db, autocommit=True) as opened:
        yield opened


def test_a_key_is_shown_once_and_kept_as_a_digest(call: Call, conn: psycopg.Connection) -> None:
    """Standard output is the key alone, for a script to take; nothing in the database gives it back."""
    made = call("keys", "create", "--client", "shop", "--label", "web shop")
    key = made.out.strip()
    listed = call("keys", "list")

    assert (made.code, listed.code) == (0, 0)
    assert re.fullmatch(r"sp_development_[A-Za-z0-9]{32}", key)
    assert "shop" in listed.out
    assert "web shop" in listed.out
    assert key not in listed.out + listed.err + made.err
    assert conn.execute("SELECT sha256, scopes FROM api_keys").fetchall() == [(access.digest(key), ["checkout:write", "checkout:read"])]
    assert key not in str(conn.execute("SELECT * FROM api_keys").fetchall())


def test_json_gives_what_was_made_found_and_revoked(call: Call) -> None:
    """A script gets every fact, the key only once."""
    arguments = ("--scope", "ops:read", "--rate", "30/min", "--burst", "7", "--env", "production", "--json")
    made = call("keys", "create", "--client", "support", *arguments).json
    (listed,) = call("keys", "list", "--client", "support", "--json").json["keys"]
    revoked = call("keys", "revoke", str(made["id"]), "--json").json

    assert made["key"].startswith("sp_production_")
    assert {name: made[name] for name in ("client", "env", "scopes", "rate_per_s", "burst")} == {
        "client": "support",
        "env": "production",
        "scopes": ["ops:read"],
        "rate_per_s": 0.5,
        "burst": 7,
    }
    assert "key" not in listed
    assert (listed["id"], listed["revoked_at"], listed["last_used"]) == (made["id"], None, None)
    assert [one["id"] for one in revoked["revoked"]] == [made["id"]]
    assert revoked["unknown"] == []


def test_revoking_again_keeps_the_first_time_and_unknown_numbers_are_told(call: Call) -> None:
    """What can be revoked is, whatever else was named; exit code 3 says that something was not there."""
    number = str(call("keys", "create", "--client", "shop", "--json").json["id"])

    first = call("keys", "revoke", number, "--json")
    again = call("keys", "revoke", number, "999", "--json")

    assert (first.code, again.code) == (0, 3)
    assert again.json["revoked"] == first.json["revoked"]
    assert again.json["unknown"] == [999]
    assert "999" in again.err


def test_a_limit_that_is_given_changes_the_clients_and_none_keeps_it(call: Call) -> None:
    """The limit is the client's, not the key's."""
    first = call("keys", "create", "--client", "shop", "--rate", "5", "--json").json
    second = call("keys", "create", "--client", "shop", "--json").json
    third = call("keys", "create", "--client", "shop", "--burst", "3", "--json").json

    assert [(made["rate_per_s"], made["burst"]) for made in (first, second, third)] == [(5, 10), (5, 10), (5, 3)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("create",), 2, "--client"),
        (("create", "--client", "demo"), 2, "demo is whoever calls without a key"),
        (("create", "--client", "Big Shop"), 2, "a name has"),
        (("create", "--client", "shop", "--scope", "everything"), 2, "everything"),
        (("create", "--client", "shop", "--rate", "many"), 2, "20/s"),
        (("create", "--client", "shop", "--rate", "0"), 2, "20/s"),
        (("create", "--client", "shop", "--env", "staging"), 2, "development or production"),
        (("create", "--client", "shop", "--label", "two\nlines"), 2, "one line"),
        (("list",), 3, "keys create"),
        (("list", "--client", "nobody"), 3, "nobody"),
        (("revoke", "1"), 3, "there is no key 1"),
        (("revoke", "x"), 2, "x"),
        (("revoke",), 2, "ID"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(call: Call, arguments: tuple[str, ...], code: int, said: str) -> None:
    """2 for a wrong call, 3 for nothing to work on; nothing is stored."""
    run = call("keys", *arguments)

    assert (run.code, run.out) == (code, "")
    assert said in run.err
    assert "Traceback" not in run.err
    assert call("keys", "list").code == 3


@pytest.mark.parametrize(("env", "said"), [("production", "refused in production"), ("staging", "development or production")])
def test_an_environment_that_does_not_fit_gets_no_key(call: Call, monkeypatch: pytest.MonkeyPatch, env: str, said: str) -> None:
    """SAGAPOST_ENV counts for the command as for the services: production wants a protected database, and another word is none."""
    monkeypatch.setenv("SAGAPOST_ENV", env)

    run = call("keys", "create", "--client", "shop")

    assert (run.code, run.out) == (2, "")
    assert said in run.err


def test_an_expired_key_is_refused_and_the_list_says_so(
    call: Call, conn: psycopg.Connection, order_db: str, start_service: Start, eventually: Callable[..., Any]
) -> None:
    """A key with --expires opens the gateway until its time, by the database's clock, and no longer."""
    order = start_service("order", {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": order_walk.NOWHERE}).wait_ready()
    gateway = start_service("gateway", {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0"}).wait_ready()
    made = call("keys", "create", "--client", "audit", "--expires", "1d", "--json").json
    headers = {"Authorization": f"Bearer {made['key']}"}

    before = httpx.get(f"{gateway.url}/api/orders/1", headers=headers)
    conn.execute("UPDATE api_keys SET expires_at = now()")
    eventually(lambda: httpx.get(f"{gateway.url}/api/orders/1", headers=headers).status_code == 401)

    assert before.status_code == 404
    assert made["expires_at"] > made["created_at"]
    assert "expired" in call("keys", "list").out
    assert [one["expired"] for one in call("keys", "list", "--json").json["keys"]] == [True]


def test_who_made_and_revoked_a_key_and_why_is_kept(call: Call) -> None:
    """The list shows it, and a second revocation does not change it."""
    number = str(call("keys", "create", "--client", "shop", "--actor", "ann", "--reason", "new shop", "--json").json["id"])
    call("keys", "revoke", number, "--actor", "bob", "--reason", "it leaked")
    call("keys", "revoke", number, "--actor", "eve", "--reason", "no reason")

    (listed,) = call("keys", "list", "--json").json["keys"]

    assert [listed[name] for name in ("created_by", "created_reason", "revoked_by", "revoked_reason")] == [
        "ann",
        "new shop",
        "bob",
        "it leaked",
    ]
    assert "ann new shop; revoked: bob it leaked" in call("keys", "list").out


@pytest.mark.parametrize("given", ["yesterday", "2020-01-01T00:00:00Z", "0d", ""])
def test_an_end_that_is_none_is_refused(call: Call, conn: psycopg.Connection, given: str) -> None:
    """A time that is over or cannot be read makes no key: exit code 2."""
    done = call("keys", "create", "--client", "shop", "--expires", given)

    assert (done.code, done.out) == (2, "")
    assert conn.execute("SELECT count(*) FROM api_keys").fetchone() == (0,)


def test_a_key_from_the_command_opens_the_gateway_until_it_is_revoked(
    call: Call, order_db: str, start_service: Start, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    """Created, used by a customer and by an operator's own commands, noted as used, revoked, refused."""
    env = {"SAGAPOST_DATABASE_URL": order_db, "SAGAPOST_AMQP_URL": order_walk.NOWHERE}
    order = start_service("order", env).wait_ready()
    variables = {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0", "SAGAPOST_ENV": "production"}
    variables["SAGAPOST_INTERNAL_SECRET"] = "5d0c82e1b7f94a36d1e0b85f27c4936a"
    gateway = start_service("gateway", variables).wait_ready()
    shop = call("keys", "create", "--client", "shop", "--env", "production", "--json").json
    support = call("keys", "create", "--client", "support", "--env", "production", "--scope", "ops:read", "--json").json

    placed = httpx.post(f"{gateway.url}/api/checkout", json=CART, headers={"Authorization": f"Bearer {shop['key']}"})
    monkeypatch.setenv("SAGAPOST_GATEWAY_URL", gateway.url)
    keyless = call("saga", "show", str(placed.json()["id"]))
    monkeypatch.setenv("SAGAPOST_API_KEY", support["key"])
    shown = call("saga", "show", str(placed.json()["id"]), "--json")
    refused = call("saga", "retry", str(placed.json()["id"]), "--reason", "try")
    used = {key["client"]: key["last_used"] is not None for key in call("keys", "list", "--json").json["keys"]}
    call("keys", "revoke", str(shop["id"]), str(support["id"]))

    assert placed.status_code == 202
    assert (keyless.code, "SAGAPOST_API_KEY" in keyless.err) == (2, True)
    assert (shown.code, shown.json["saga_id"]) == (0, placed.json()["saga_id"])
    assert (refused.code, "ops:write" in refused.err) == (1, True)
    assert used == {"shop": True, "support": True}
    headers = {"Authorization": f"Bearer {shop['key']}"}
    eventually(lambda: httpx.get(f"{gateway.url}/api/orders/1", headers=headers).status_code == 401)
    eventually(lambda: call("saga", "list").code == 2)
