"""Card numbers in text: one detector for what is accepted, what is logged and what is verified; it must not know who asks.

A card number is 13 to 19 digits that fulfil the check digit of ISO/IEC 7812-1, annex B (Luhn), alone or in groups. Between two groups stand
spaces or dashes. A group is never split, so 20 digits without a separator hold no card number. Letters and other signs end a group.
"""

import bisect
import itertools
import re
from collections.abc import Generator
from typing import Final

DIGITS_MIN: Final = 13
DIGITS_MAX: Final = 19

# A run of groups with at least 13 digits. Possessive, so that no digit is read more than 13 times: the search stays linear.
_RUN: Final = re.compile(r"(?<![0-9])[0-9](?:[ -]{0,3}+[0-9]){12,}+")
_GROUP: Final = re.compile(r"[0-9]+")
_BETWEEN: Final = re.compile(r"[^0-9]+")
_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_PLAIN: Final = bytes.maketrans(b"0123456789", bytes(range(10)))
_TWICE: Final = bytes.maketrans(b"0123456789", bytes(_DOUBLED))
_TEN: Final = 10


def is_card_number(text: str) -> bool:
    """Return whether the ASCII digits of the text, without what stands between, are one card number."""
    digits = [int(char) for char in text if "0" <= char <= "9"]
    if not DIGITS_MIN <= len(digits) <= DIGITS_MAX:
        return False
    return (sum(digits[::-2]) + sum(_DOUBLED[digit] for digit in digits[-2::-2])) % _TEN == 0


def holds_card_number(text: str) -> bool:
    """Return whether a card number stands anywhere in the text. The time grows with the text's length, not with its square."""
    return next(spans(text), None) is not None


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
    digits = _BETWEEN.sub("", run).encode("ascii")
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
