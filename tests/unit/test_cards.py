"""The detector of card numbers, and what an Idempotency-Key may hold."""

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagapost_contracts import addresses, cards, idempotency

NUMBERS = ("4111111111111111", "378282246310005", "5555555555554444", "4222222222222", "6304000000000000000")
SEPARATORS = ("", " ", "-", "_", ".", "\t", "\u00a0", "\u2009", "\u2011", "\u2013", "\u2212", "\uff0d", "\uff0e", "\uff3f", " - ", "__")
SCRIPTS = (
    "0123456789",
    "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19",
    "\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669",
)


def _grouped(number: str, separator: str) -> str:
    return separator.join(number[start : start + 4] for start in range(0, len(number), 4))


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_card_number_is_found_with_each_separator_and_in_each_script(number: str, separator: str) -> None:
    """Spaces, dashes, underscores and dots between groups, and digits of other scripts, hide nothing."""
    for digits in SCRIPTS:
        written = _grouped(number, separator).translate(str.maketrans("0123456789", digits))

        assert cards.masked(f"x{written}y", "<card>") == "x<card>y"
        assert cards.is_card_number(written)


@pytest.mark.parametrize(
    "text", ["4111\n1111\n1111\n1111", "4111..1111..1111..1111", "4111.1111.1111.1112", "1299.99 2026.11 22", "127.0.0.1"]
)
def test_what_is_no_group_of_a_card_number_stays(text: str) -> None:
    """Lines, dots in a row, and a check digit that is wrong."""
    assert not cards.holds_card_number(text)


@pytest.mark.parametrize("unit", ["1.", "1 ", "1_", "1", "1.1 ", "\uff11.", "1   ", "1    "])
def test_the_time_grows_with_the_text_and_not_with_its_square(unit: str) -> None:
    """Four times the text takes about four times the time, whatever stands between its digits."""

    def cost_s(repeats: int) -> float:
        begun = time.thread_time()
        cards.holds_card_number(unit * repeats)
        return time.thread_time() - begun

    short, long = (min(cost_s(repeats) for _ in range(5)) for repeats in (20_000, 80_000))

    assert long <= 10 * short + 0.01


@pytest.mark.parametrize("separator", ["", "-", "_", ".", "__"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_key_that_holds_a_card_number_is_no_key(number: str, separator: str) -> None:
    """Bare, in quotes, and behind or in front of other characters."""
    written = _grouped(number, separator)

    for key in (written, f'"{written}"', f"cart:{written}", f"{written}:1", f"a_{written}", f"{uuid.UUID(int=7)}/{written}"):
        assert idempotency.bare(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "jane@example.com",
        "x:jane@example.com:1",
        "o'brien=x@mail.example.co.uk",
        "jane%40example.com",
        "jane%2540example.com",
        "/a/j@xn--a.de",
    ],
)
def test_a_key_that_holds_an_address_is_no_key(key: str) -> None:
    """A key is stored for seven days, and nobody looks for an address there."""
    assert idempotency.bare(key) is None
    assert addresses.holds_email_address(key)


@pytest.mark.parametrize(
    "key", ["cart@7", "a@b", "@example.com", "1732870000004", "20241129083008", "order-2024-11-29-0001", "sha256:" + "4" * 64]
)
def test_other_keys_stay_keys(key: str) -> None:
    """The sign alone is no address; times and numbers that no card network has are no card numbers."""
    assert idempotency.bare(key) == key


@given(st.uuids())
def test_a_uuid_is_always_a_key(name: uuid.UUID) -> None:
    """Whatever its digits are, with dashes or without."""
    assert [idempotency.bare(text) for text in (str(name), name.hex, str(name).upper())] == [str(name), name.hex, str(name).upper()]


@given(st.from_regex(r"[0-9]{8}-[0-9]{4}-[0-9]{4}-[0-9]{4}-[0-9]{12}", fullmatch=True))
def test_a_uuid_of_digits_is_a_key(key: str) -> None:
    """Every one of them, although its groups are those of a long number."""
    assert idempotency.bare(key) == key
