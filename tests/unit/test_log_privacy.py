"""No log line holds an address or a card number, and nobody can write a line of their own into the log."""

import json
import subprocess
import sys
import time
import uuid
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sagapost_chassis import privacy
from sagapost_contracts import addresses

CODE = r"""
import json, logging, sys
from sagapost_chassis import telemetry

telemetry.configure("test")
for fields in json.load(sys.stdin):
    if "raises" in fields:
        try:
            raise ValueError(fields["raises"])
        except ValueError as exc:
            telemetry.log.error("it.failed", exc_info=exc)
    elif "library" in fields:
        logging.getLogger("aiormq").error("%s", fields["library"])
    else:
        telemetry.log.warning("it.happened", **fields)
"""
CARDS = ("4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "378282246310005", "6011000990139424", "4222222222222")


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("around", ["{}", "card {} declined", '{{"number": "{}"}}', "/api/orders/{}", "number={}", "{},"])
def test_a_card_number_is_taken_out(card: str, around: str) -> None:
    """Alone, in a sentence, in JSON, in a path."""
    assert privacy.scrubbed(around.format(card)) == around.format(privacy.CARD)


@pytest.mark.parametrize(
    "text",
    ["4111111111111112", "0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11", "4bf92f3577b34da6a3ce929d0e0e4736", "1299.99", "7446011111111111119"],
)
def test_other_numbers_stay(text: str) -> None:
    """What fails the check digit, or is part of an id, is no card number."""
    assert privacy.scrubbed(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("550 5.1.1 <test+shop@mail.example.com>: unknown", "550 5.1.1 <<address>>: unknown"),
        ("to=test@example.com, from=shop@example.org", "<address>, <address>"),
        ("o=brien=secret@example.com", "<address>"),
        ("o'brien@example.com 'jane@example.com'", "<address> <address>'"),
        ("/nothere/pctb%40example.com", "<address>"),
        ("/nothere/pctb%2540example%2ecom", "<address>"),
        ("100 % of a%%40example.com", "100 % of <address>"),
        ("50 % of 100%25", "50 % of 100%25"),
        ("jane\uff20example\uff0ecom", "<address>"),
        ("amqp://order:secret@mq.internal.example:5672/", "amqp://order:<address>:5672/"),
        ("user at example.com", "user at example.com"),
        ("@", "@"),
    ],
)
def test_an_address_is_taken_out(text: str, left: str) -> None:
    """Wherever it stands; a password in a URL goes with it."""
    assert privacy.scrubbed(text) == left


@pytest.mark.parametrize(
    "name",
    ["ForeignSagaError@handlers.py:intend", "ZeroDivisionError@test_chassis_consuming.py:handler", "CommitUnknownError@db.py:transaction"],
)
def test_the_name_of_a_failure_stays(name: str) -> None:
    """A fingerprint is no address: whoever reads `dlq groups` finds it in the log."""
    assert privacy.scrubbed(f"it failed: {name}, again") == f"it failed: {name}, again"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("name@site.com.py:secret", "<address>:secret"),
        ("name@shop.py:intend", "<address>:intend"),
        ("jos\u00e9@b\u00fccher.example", "<address>"),
        ('"a b"@example.com', "<address>"),
        ("1 4242424242424242", "1 <card>"),
        ("x4242424242424242", "x<card>"),
        ("4242-4242 4242-4242x", "<card>x"),
        ("4111.1111.1111.1111", "<card>"),
        ("4111_1111_1111_1111", "<card>"),
        ("\uff14\uff11\uff11\uff11" + "\uff11" * 12, "<card>"),
        ("/api/orders/4111%252d1111%252d1111%252d1111", "/api/orders/<card>"),
        ("/api/orders/%2534111111111111111", "/api/orders/<card>"),
        ("/api/orders/sp_development_" + "a1B2" * 8, "/api/orders/<key>"),
        ("sp_production_" + "Z9" * 16 + ".", "<key>."),
    ],
)
def test_nothing_is_missed_for_what_stands_beside_it(text: str, left: str) -> None:
    """A domain of Paraguay, other scripts, quotes, a letter or a short group in front of a card number, a key in a path."""
    assert privacy.scrubbed(text) == left


@given(st.uuids())
def test_no_id_is_taken_for_a_card(name: uuid.UUID) -> None:
    """The ids of messages, sagas and traces stay whole."""
    assert privacy.scrubbed(f"{name} {name.hex}") == f"{name} {name.hex}"


@given(st.text(alphabet="abcXYZ019._%+-", min_size=1, max_size=64).filter(lambda word: word[0] not in ".-"), st.text(max_size=40))
def test_no_plain_address_is_left_in_any_text(local: str, around: str) -> None:
    """Whatever stands around an address, it does not stay whole."""
    address = f"{local}@example.com"

    assert address not in privacy.scrubbed(f"{around} {address} {around}")


LOCAL = "abcXYZ019!#$%&'*+/=?^_`{|}~-"


@example(local="%09", depth=0, every=True)
@example(local="%09", depth=1, every=False)
@given(local=st.text(alphabet=LOCAL, min_size=1, max_size=30), depth=st.integers(0, 12), every=st.booleans())
def test_no_part_of_an_address_is_left_however_often_it_is_encoded(*, local: str, depth: int, every: bool) -> None:
    """Every character that an address may have, the sign or everything escaped, and the escapes escaped again."""
    address = f"{local}@example.com"
    assert addresses.is_email_address(address)
    for _ in range(depth):
        address = address.replace("%", "%25") if "%40" in address else address.replace("@", "%40")
    if every and not depth:
        address = "".join(f"%{ord(char):02X}" for char in address)

    assert privacy.scrubbed(f"to {address}!") == "to <address>!"


@pytest.mark.parametrize("unit", ["%25", "%2540", "a%40", "%", "a=", "'", "a.", "1.", "\uff11", "\uff20", "a%2540b.c"])
def test_the_time_grows_with_the_text_and_not_with_its_square(unit: str) -> None:
    """Four times the text takes about four times the time, whatever it is made of."""

    def cost_s(repeats: int) -> float:
        begun = time.thread_time()
        privacy.scrubbed(unit * repeats)
        return time.thread_time() - begun

    short, long = (min(cost_s(repeats) for _ in range(3)) for repeats in (10_000, 40_000))

    assert long <= 10 * short + 0.02


def test_a_long_text_takes_no_time_worth_speaking_of() -> None:
    """A megabyte that is almost an address, or almost a number, is looked at once."""
    assert privacy.scrubbed("a" * 1_000_000 + "@") == "a" * 1_000_000 + "@"
    assert privacy.scrubbed("1" * 1_000_000) == "1" * 1_000_000
    assert privacy.scrubbed('"' * 1_000_000 + "@") == '"' * 1_000_000 + "@"
    assert privacy.scrubbed("a@" * 500_000) == "a@" * 500_000


def _logged(*calls: dict[str, Any]) -> str:
    """Log each of these in a process of its own, whose set-up is a process's for good, and give what it wrote."""
    done = subprocess.run([sys.executable, "-c", CODE], input=json.dumps(calls), capture_output=True, text=True, check=True, timeout=30)
    return done.stderr


def test_no_value_can_forge_a_line() -> None:
    """A line break of any kind in a value, a name or a nested value stays inside its one JSON line, as an escape."""
    separators = ("\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x00", "\x1b[2K", "\x7f", "\ud800")
    forged = [f'x{separator}{{"event": "operator.paid"}}' for separator in separators]

    lines = _logged(*({"path": word, "nested": [{word: word}]} for word in forged)).splitlines()

    assert len(lines) == len(forged)
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert [json.loads(line)["event"] for line in lines] == ["it.happened"] * len(forged)
    assert [json.loads(line)["path"] for line in lines] == forged


def test_a_line_holds_neither_address_nor_card() -> None:
    """In a text, a list, a key, a number, an exception or what a library logs."""
    said = _logged(
        {"to": ["one@example.com", {"two@example.com": 4111111111111111}], "note": "4111 1111 1111 1111"},
        {"raises": "nobody@example.com paid with 4111111111111111"},
        {"library": "nobody@example.com paid with 4111111111111111"},
    )

    assert len(said.splitlines()) == 3
    assert "@" not in said
    assert "4111" not in said
