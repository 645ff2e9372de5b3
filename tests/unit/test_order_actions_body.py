"""What an operator's action may say: short, seen, and cheap to refuse."""

import json

import pytest

from sagapost_order import actions, errors

UNSEEN = ("\u202e", "\u2066", "\u200b", "\u200f", "\ufeff", "\u00ad", "\x1b", "\x00", "\n", "\u2028", "\U000e0041", "\ue000")


def refused(body: bytes) -> list[tuple[str, str]]:
    """Read an action that is wrong, and give the pointers and codes of what is wrong."""
    with pytest.raises(errors.RequestInvalidError) as caught:
        actions.parse("mark-refunded", body, ("*",), "jane")
    return [(error.pointer, error.code) for error in caught.value.errors]


def test_an_action_over_8_kib_is_not_parsed() -> None:
    """The longest reason and reference have room in 8 KiB, however they are escaped; a larger body is refused unread."""
    with pytest.raises(errors.MalformedRequestError, match="at most 8192 bytes"):
        actions.parse("retry", b'{"reason": ' + b"[" * 9000, ("*",), "jane")

    long = {"reason": "\U0001f600" * 500, "reference": "\U0001f600" * 100}
    assert actions.parse("mark-refunded", json.dumps(long).encode(), ("*",), "jane").reason == long["reason"]


@pytest.mark.parametrize("character", UNSEEN, ids=ascii)
@pytest.mark.parametrize("field", ["reason", "reference"])
def test_a_reason_holds_nothing_that_is_not_seen(field: str, character: str) -> None:
    """Control and format characters, bidi ones among them, are refused: what an operator reads is what is stored."""
    whole = {"reason": "money is back", "reference": "re_1"} | {field: f"a{character}b"}

    assert refused(json.dumps(whole).encode()) == [(f"/{field}", "wrong_format")]


@pytest.mark.parametrize("field", ["reason", "reference"])
@pytest.mark.parametrize("text", ["x4111111111111111", "1 4111 1111 1111 1111 2"])
def test_a_card_number_in_an_action_is_refused(field: str, text: str) -> None:
    """Neither the reason nor the reference holds a card number, whatever stands beside it."""
    whole = {"reason": "money is back", "reference": "re_1"} | {field: text}

    assert refused(json.dumps(whole).encode()) == [("", "card_number")]
