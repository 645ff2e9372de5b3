"""One JSON document read strictly: no duplicate keys, no deep nesting, no NaN, numbers as they were written; it knows no field."""

import json
import re
from typing import Final, NoReturn

import msgspec

from sagapost_order import errors

MAX_DEPTH: Final = 8
_INT_DIGITS: Final = 19  # as many as 2^63-1 has; a longer number stays text, so that nobody converts 5,000 digits
# every string is one token, closed or not: no quote is looked at twice, so that the scan stays linear
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class Number(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON number that is not a plain integer of at most 19 digits, as it was written."""

    text: str


def read(body: bytes) -> object:
    """Read a body into dicts, lists, str, int, bool, None and Number.

    Raises:
        MalformedRequestError: not UTF-8, not JSON, deeper than 8, a key twice, NaN or Infinity, half a surrogate pair.

    """
    _check_depth(body)
    try:
        tree: object = json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
        )
    except UnicodeDecodeError as exc:
        raise errors.MalformedRequestError("The body is not UTF-8.") from exc
    except json.JSONDecodeError as exc:
        raise errors.MalformedRequestError(f"The body is not JSON: it breaks at character {exc.pos}.") from exc
    if not all(_is_text(text) for text in strings(tree)):
        raise errors.MalformedRequestError("The body holds half of a surrogate pair.")
    return tree


def strings(tree: object) -> list[str]:
    """List every key and every string of a document."""
    if isinstance(tree, str):
        return [tree]
    found: list[str] = []
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += [str(key), *strings(value)]
    elif isinstance(tree, list):
        for value in tree:
            found += strings(value)
    return found


def _check_depth(body: bytes) -> None:
    # before the parser sees it: json.loads recurses, and 20,000 levels would end in a RecursionError
    depth = 0
    for token in _TOKEN.finditer(body):
        first = token[0][:1]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise errors.MalformedRequestError(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise errors.MalformedRequestError("An object has the same key twice.")
    return found


def _integer(text: str) -> int | Number:
    return int(text) if len(text) <= _INT_DIGITS else Number(text=text)


def _number(text: str) -> Number:
    return Number(text=text)


def _constant(_: str) -> NoReturn:
    raise errors.MalformedRequestError("NaN and Infinity are not JSON.")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
