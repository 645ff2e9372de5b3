"""Takes e-mail addresses, card numbers and API keys out of what is about to be written down; it must not know who writes."""

import re
import urllib.parse
from collections.abc import Mapping
from typing import Final

from sagapost_contracts import cards

ADDRESS: Final = "<address>"
CARD: Final = "<card>"
KEY: Final = "<key>"
_AT: Final = "@\uff20\ufe6b"
_DOT: Final = "[.\u3002\uff0e\uff61]"  # what mail programs take for a dot of a domain (RFC 3490, 3.1)
# Bounded on all sides: what looks at an address must not take the square of a long text's length. A local part may have every character
# that contracts/addresses.py allows, `=` and `'` among them, so that a name in front of it (`to=`) is taken out with it.
_ADDRESS: Final = re.compile(
    rf"(?:\"[^\"\n]{{1,64}}\"|[^\s\"<>(),:;{_AT}\[\]\\]{{1,64}})[{_AT}][\w-]{{1,63}}(?:{_DOT}[\w-]{{1,63}}){{1,8}}(:[A-Za-z_]\w{{0,63}})?"
)
_AT_SIGN: Final = re.compile(f"[{_AT}]")
# An escape of an escape: the server decodes a path once, a client may have encoded it more than once.
_ESCAPED: Final = re.compile(r"%(?:25)+(?=[0-9A-Fa-f]{2})")
_ESCAPED_AT: Final = re.compile(r"%(?:25)*40")
_DECODED_AT_MOST: Final = 8  # an escape whose digits are escaped, again and again
# the name of a failure, which arrivals.fingerprint makes: an exception, a file and a function; people look for it in the log
_FINGERPRINT: Final = re.compile(
    r"(?:[a-z_]{1,40}=)?'?[A-Z][A-Za-z0-9]{0,58}(?:Error|Exception|Group)@[a-z_][a-z0-9_]{0,59}\.py:[A-Za-z_]\w{0,63}"
)
_KEY: Final = re.compile(r"sp_(?:development|production)_[A-Za-z0-9]+")


def scrubbed(text: str) -> str:
    """Return the text with every address, card number and API key replaced. The time grows with its length, not with its square.

    What is only seen behind percent-encoding, of whatever depth, is replaced as well, and the text is then returned decoded.
    """
    found = plain = _scrubbed(text)
    for _ in range(_DECODED_AT_MOST):
        if "%" not in plain:
            break
        decoded = _ESCAPED_AT.sub("@", plain)  # alone first: a local part may hold what looks like an escape
        hidden = _scrubbed(decoded)
        if hidden == decoded:
            decoded = urllib.parse.unquote(_ESCAPED.sub("%", plain))
            if decoded == plain:
                break
            hidden = _scrubbed(decoded)
        plain = hidden
        if hidden != decoded:
            found = hidden
    return found


def _scrubbed(text: str) -> str:
    if _AT_SIGN.search(text):
        text = _ADDRESS.sub(_address, text)
    if "sp_" in text:
        text = _KEY.sub(KEY, text)
    parts, end = [], 0
    for found in cards.ID.finditer(text):
        parts += [cards.masked(text[end : found.start()], CARD), found[0]]
        end = found.end()
    return "".join([*parts, cards.masked(text[end:], CARD)])


def _address(found: re.Match[str]) -> str:
    return found[0] if _FINGERPRINT.fullmatch(found[0]) else ADDRESS + (found[1] or "")


def cleaned(value: object) -> object:
    """Return a value of any depth with every text in it scrubbed, keys included; numbers with a card's digits too."""
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return CARD if is_card(str(value)) else value
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [cleaned(part) for part in value]
    return value


def is_card(text: str) -> bool:
    """Return whether 13 to 19 digits, grouped or not, are one card number."""
    return cards.is_card_number(text)
