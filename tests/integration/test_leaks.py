"""A whole stack under a campaign of good and hostile calls: nothing of it stands in logs, metrics and command lines that must not."""

import http.client
import itertools
import json
import pathlib
import socket
import urllib.request
from collections.abc import Generator, Mapping
from types import MappingProxyType

import psycopg
import pytest
from e2e import shop_stack
from integration import leak_search

from sagapost_contracts import topology
from sagapost_ops import plan, roles
from sagapost_ops.topology import accounts
from sagapost_sandbox.testing import polling

pytestmark = pytest.mark.timeout(300)

CARD = "4111111111111111"
GROUPED = "4111 1111 1111 1111"
CUSTOMERS = [f"leak-canary+{number}@customers.example.com" for number in range(6)]
WORDS = ("leak-canary", CARD, GROUPED, "customers.example.com")
PASSWORDS = (
    *(password for _, password, _ in plan.DATABASES.values()),
    plan.BROKER_USER[1],
    *(accounts.development_password(user.name) for user in topology.USERS),
    *(roles.development_password(role.name) for role in roles.ROLES),
)
FORGED = '{"event": "forged.event", "level": "info", "at": "2026-11-22T00:00:00Z"}'


@pytest.fixture(scope="module")
def stack(run_folder: pathlib.Path) -> Generator[shop_stack.Stack]:
    """Run one stack for the tests of this module."""
    made = shop_stack.Stack(run_folder / "leaks" / "state")
    try:
        made.up()
        yield made
    finally:
        made.run("down", "--purge")


def _cart(email: str, **changes: object) -> dict[str, object]:
    return {"user_id": 1, "user_email": email, "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]} | changes


def _send(stack: shop_stack.Stack, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})) -> int:
    connection = http.client.HTTPConnection("localhost", plan.PUBLIC["gateway"] + stack.offset, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} | dict(headers))
        return connection.getresponse().status
    finally:
        connection.close()


def _say(stack: shop_stack.Stack, port: str, text: bytes) -> None:
    """Send bytes that no well-behaved client sends, and read what comes."""
    with socket.create_connection(("localhost", plan.PUBLIC[port] + stack.offset), timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def _good(stack: shop_stack.Stack) -> None:
    """Buy in every way that ends with a mail, and let one mail be refused by a server that repeats the recipient."""
    methods = ("pm_card_ok", "pm_card_declined", "pm_flaky", "pm_error_after_charge", "pm_card_ok", "pm_card_insufficient_funds")
    placed: list[shop_stack.Order] = []
    for email, method in zip(CUSTOMERS, methods, strict=True):
        status, answer = stack.call("POST", "/api/checkout", _cart(email, payment_method=method))
        assert status == 202, answer
        placed.append(shop_stack.Order(**{name: json.loads(answer)[name] for name in ("id", "saga_id")}))
    for order in placed:
        stack.ended(order)
    assert _send(stack, "POST", f"/api/orders/{placed[0].id}/cancel") == 202
    polling.eventually(lambda: "cancellation" in stack.mails(placed[0].saga_id), shop_stack.SAGA_S)


def _hostile(stack: shop_stack.Stack) -> None:
    """Put an address, a card number and a log line of one's own wherever there is room."""
    email = CUSTOMERS[0]
    break_out = f"x\\n{FORGED}"
    bodies = (
        json.dumps(_cart(email, payment_method=CARD)),
        json.dumps(_cart(email, card=GROUPED)),
        json.dumps(_cart(f"{CARD}@customers.example.com", items=[])),
        json.dumps(_cart(f"{email}\n{FORGED}")),
        json.dumps(_cart(email, payment_method=f"pm\n{FORGED}")),
        json.dumps(_cart(email, user_id=int(CARD))),
        f'{{"user_email": "{email}", "number": {CARD}',
        f"{email} {CARD}\n{FORGED}\n",
    )
    for body in bodies:
        _send(stack, "POST", "/api/checkout", body.encode())
        _send(stack, "POST", "/api/checkout", body.encode(), {"Idempotency-Key": f"{email} {CARD}"})
        _send(stack, "POST", f"/api/ops/sagas/{CARD}/retry", body.encode())
    quoted = f"{email}%0a%0d{FORGED}".replace('"', "%22").replace(" ", "%20")
    paths = (
        f"/api/orders/{CARD}",
        f"/api/sagas/{quoted}",
        f"/api/products/{quoted}?mail={email}&card={CARD}",
        f"/{quoted}",
        f"/api/orders/{email}",
    )
    headers = {
        "traceparent": break_out,
        "User-Agent": f"{email} {CARD}",
        "Authorization": f"Bearer {CARD}{email}",
        "Prefer": f"wait={CARD}",
    }
    for path, (name, value) in itertools.product(paths, headers.items()):
        _send(stack, "GET", path, headers={name: value})
    for port in ("gateway", "order", "payment", "email"):
        _say(stack, port, f"GET /{email}/{CARD}\r\n{FORGED}\r\n\r\n".encode())
        _say(stack, port, f"GET / HTTP/1.1\r\nHost: {email}\r\nX: {CARD}\n{FORGED}\r\n\r\n".encode())
        _say(stack, port, f"{FORGED}\n{email}\n".encode())


def _refused_row(stack: shop_stack.Stack) -> None:
    """Let the database refuse a row: what it tells of that, the row included, goes to the server's log."""
    row = {"email": CUSTOMERS[0], "method": CARD}
    with psycopg.connect(stack.state().addresses.order_database_url) as conn, pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(
            "INSERT INTO orders (user_id, user_email, status, currency, total_amount, payment_method, processing_duration_ms, created_at,"
            " updated_at) VALUES (1, %(email)s, 'none', 'USD', 1, %(method)s, 1, now(), now())",
            row,
        )


def _metrics(stack: shop_stack.Stack) -> dict[str, str]:
    made = json.loads((stack.home / "plan.json").read_bytes())
    ports = {name: port for name, port in made["ports"].items() if name.endswith("-metrics")}
    found: dict[str, str] = {}
    for name, port in ports.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            found[name] = answer.read().decode()
    return found


def test_no_log_no_metric_and_no_command_line_gives_anything_away(stack: shop_stack.Stack) -> None:
    """After sales, failures, refusals and attacks: no address, no card number, no password, and every line is one of ours."""
    _good(stack)
    _hostile(stack)
    _refused_row(stack)

    metrics, lines = _metrics(stack), leak_search.command_lines(stack.home)
    logs = leak_search.files(stack.home)
    services = {
        name: text for name, text in logs.items() if pathlib.Path(name).stem in {*plan.SCALED, "order", "gateway", "provider", "mailbox"}
    }
    assert len(metrics) == len(plan.MEASURED)
    assert len(services) == 8
    assert any(str(stack.home / "order-db" / "server.log") == name for name in logs)
    assert all(
        "request.handled" in text or "message.handled" in text or "mail.handled" in text
        for name, text in services.items()
        if "relay" not in name
    )
    assert leak_search.leaks(logs | metrics | lines, (*WORDS, *PASSWORDS)) == []
    assert leak_search.forged(services, "forged.event") == []


def test_the_search_finds_what_it_looks_for(tmp_path: pathlib.Path) -> None:
    """An address, a card number in three forms, a password, a line that is no JSON: each is found; ids and times are not taken for them."""
    good = '{"event": "x", "level": "info", "at": "2026-11-22T10:00:00.123456Z", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "ms": 1.5}'
    (tmp_path / "a.log").write_text(f"{good}\n", encoding="utf-8")
    bad = {
        "to": "somebody@example.org",
        "bare": f'{{"n": {CARD}}}',
        "grouped": GROUPED,
        "dashed": "4111-1111-1111-1111",
        "word": "order_password",
    }

    assert leak_search.leaks(leak_search.files(tmp_path), PASSWORDS) == []
    assert leak_search.forged(leak_search.files(tmp_path), "forged.event") == []
    assert {found.partition(":")[0] for found in leak_search.leaks(bad, PASSWORDS)} == bad.keys()
    assert len(leak_search.forged({"a": f"{good}\nfree text\n[1]\n{good[:-1]}\n{FORGED}\n"}, "forged.event")) == 4
