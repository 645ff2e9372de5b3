"""Card numbers in text: one detector for what is accepted, what is logged and what is verified; it must not know who asks.

A card number is 13 to 19 digits that fulfil the check digit of ISO/IEC 7812-1, annex B (Luhn), alone or in groups. Between two groups stand
up to three spaces, dashes and underscores, or one dot. A group is never split, so 20 digits without a separator hold no card number.
Letters and other signs end a group. Digits, spaces, dashes and dots of other scripts count as well.
"""

import bisect
import itertools
import re
import unicodedata
from collections.abc import Generator
from typing import Final

DIGITS_MIN: Final = 13
DIGITS_MAX: Final = 19

# One dot only: `...` and lists of sentences are no groups. Line ends are left out, so that two lines are never one number.
_DOT: Final = "[.\u00b7\u2024\uff0e]"
_SPACE: Final = "[ \t_\\-\u00a0\u00ad\u2000-\u2015\u202f\u205f\u2060\u2212\u3000\ufe58\ufe63\ufeff\uff0d\uff3f]"
# A run of groups with at least 13 digits. Possessive, so that no digit is read more than 13 times: the search stays linear.
_RUN: Final = re.compile(rf"(?<!\d)\d(?:(?:{_DOT}|{_SPACE}{{0,3}}+)\d){{12,}}+")
_GROUP: Final = re.compile(r"\d+")
_BETWEEN: Final = re.compile(r"\D+")
# UUIDs and the ids of traces hold digits enough to look like a card number now and then.
ID: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32})(?![0-9A-Za-z])", re.IGNORECASE
)
# 22 to 27 and 5: Mastercard, Mir, Maestro; 3: American Express, Diners, JCB; 4: Visa; 6: Discover, UnionPay, Maestro, RuPay; 8: RuPay,
# UnionPay; 9: Troy and other national ones. 1 is left to airlines, 0 and 7 to other industries.
_NETWORKS: Final = re.compile(r"2[2-7]|[345689]")
_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_PLAIN: Final = bytes.maketrans(b"0123456789", bytes(range(10)))
_TWICE: Final = bytes.maketrans(b"0123456789", bytes(_DOUBLED))
_TEN: Final = 10


def is_card_number(text: str) -> bool:
    """Return whether the digits of the text, without what stands between, are one card number."""
    digits = [int(char) for char in text if char.isdecimal()]
    if not DIGITS_MIN <= len(digits) <= DIGITS_MAX:
        return False
    return (sum(digits[::-2]) + sum(_DOUBLED[digit] for digit in digits[-2::-2])) % _TEN == 0


def holds_card_number(text: str) -> bool:
    """Return whether a card number stands anywhere in the text. The time grows with the text's length, not with its square."""
    return next(spans(text), None) is not None


def holds_number_of_a_network(text: str) -> bool:
    """Return whether a card number stands in the text that begins as the numbers of a card network do.

    For texts that are often made of digits: a time in milliseconds and most generated numbers begin with 1 or 20, and one in ten of them
    has a right check digit.
    """
    return any(_NETWORKS.match(text, start) for start, _ in spans(text))


def masked(text: str, mark: str) -> str:
    """Return the text with every card number replaced by `mark`."""
    parts, end = [], 0
    for start, stop in spans(text):
        parts += [text[end:start], mark]
        end = stop
    return "".join([*parts, text[end:]])


def spans(text: str) -> Generator[tuple[int, int]]:
    """Find the card numbers of a text: where each begins and ends. They do not overlap; of two at one place the longer one counts."""
    for run in _RUN.finditer(text):
        yield from _spans_of_run(run[0], run.start())


def _spans_of_run(run: str, offset: int) -> Generator[tuple[int, int]]:
    groups = [(found.start(), found.end()) for found in _GROUP.finditer(run)]
    ends = [0, *itertools.accumulate(end - start for start, end in groups)]  # how many digits the first groups have together
    sums = _sums(run)
    first = 0
    while first < len(groups):
        last = _last_group(ends, sums, first)
        if last > first:
            yield offset + groups[first][0], offset + groups[last - 1][1]
        first = max(last, first + 1)


def _sums(run: str) -> tuple[list[int], list[int]]:
    """Return the sums of the first digits of a run, with those at even and with those at odd places doubled.

    So the sum of any window is one subtraction.
    """
    text = _BETWEEN.sub("", run)
    digits = (text if text.isascii() else "".join(str(unicodedata.decimal(char)) for char in text)).encode("ascii")
    even, odd = bytearray(digits.translate(_PLAIN)), bytearray(digits.translate(_PLAIN))
    even[::2], odd[1::2] = digits[::2].translate(_TWICE), digits[1::2].translate(_TWICE)
    return [0, *itertools.accumulate(even)], [0, *itertools.accumulate(odd)]


def _last_group(ends: list[int], sums: tuple[list[int], list[int]], first: int) -> int:
    """Return the group behind the longest card number that begins with the group `first`; `first` when there is none."""
    before = ends[first]
    found, last = first, bisect.bisect_left(ends, before + DIGITS_MIN, first)
    while last < len(ends) and ends[last] - before <= DIGITS_MAX:
        doubling = sums[ends[last] % 2]  # the last digit is not doubled, the one before it is
        if (doubling[ends[last]] - doubling[before]) % _TEN == 0:
            found = last
        last += 1
    return found
