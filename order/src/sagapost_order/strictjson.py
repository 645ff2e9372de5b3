"""One JSON document read strictly: no duplicate keys, no deep nesting, no NaN, numbers as they were written; it knows no field."""

import json
import re
from collections.abc import Generator
from typing import Final, NoReturn

import msgspec

from sagapost_order import errors

MAX_DEPTH: Final = 8
_INT_DIGITS: Final = 19  # as many as 2^63-1 has; a longer number stays text, so that nobody converts 5,000 digits
# every string is one token, closed or not: no quote is looked at twice, so that the scan stays linear
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))


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
    if b"\\u" in body and not _is_text(tree):  # only an escape can make half of a pair
        raise errors.MalformedRequestError("The body holds half of a surrogate pair.")
    return tree


def strings(tree: object) -> Generator[str]:
    """List every key and every string of a document, one by one, so that a caller can stop after as many as it has time for."""
    rest = [tree]
    while rest:
        node = rest.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            rest += [*node.values(), *node.keys()]
        elif isinstance(node, list):
            rest += node


def _check_depth(body: bytes) -> None:
    """Refuse deep nesting before the parser sees it: json.loads recurses, and 20,000 levels would end in a RecursionError.

    No loop in Python over the body's bytes: this is done for everybody's body. Each round removes the innermost brackets.
    """
    brackets = _STRING.sub(b"", body).translate(_ONE_KIND, _NO_BRACKET)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
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


def _is_text(tree: object) -> bool:
    try:
        msgspec.json.encode(tree)
    except UnicodeEncodeError:
        return False
    return True
