"""Takes e-mail addresses and card numbers out of what is about to be written down; it must not know who writes."""

import re
from collections.abc import Mapping
from typing import Final

ADDRESS: Final = "<address>"
CARD: Final = "<card>"
# bounded on both sides: what looks at an address must not take the square of a long text's length
_ADDRESS: Final = re.compile(r"[^\s\"'<>(),:;@\[\]\\=]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
# 13 to 19 digits, alone or in groups, and no part of a longer word or number
_DIGITS: Final = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])(?!\.\d)")
_TEN: Final = 10


def scrubbed(text: str) -> str:
    """Give the text with every address and every card number replaced."""
    if "@" in text:
        text = _ADDRESS.sub(ADDRESS, text)
    return _DIGITS.sub(lambda found: CARD if is_card(found[0]) else found[0], text)


def cleaned(value: object) -> object:
    """Give a value of any depth with every text in it scrubbed, keys included; numbers with a card's digits too."""
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
    """Tell whether 13 to 19 digits, grouped or not, fulfil the check digit of ISO/IEC 7812 (Luhn)."""
    digits = [int(char) for char in text if char.isdecimal()]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [sum(divmod(2 * digit, _TEN)) for digit in digits[-2::-2]]
    return (sum(digits[::-2]) + sum(doubled)) % _TEN == 0
