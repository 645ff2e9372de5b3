"""What an operator sends: a reason, maybe a reference, and the version that was looked at; it must not know the saga."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from sagapost_chassis.errors import FieldError
from sagapost_order import domain, errors, moves, states, strictjson

EVENTS: Final = {
    "retry": states.OPERATOR_RETRY,
    "compensate": states.OPERATOR_COMPENSATE,
    "waive-notify": states.OPERATOR_WAIVE_NOTIFY,
    "mark-refunded": states.OPERATOR_MARK_REFUNDED,
}
BODY_MAX_BYTES: Final = 8 * 1024  # more than the longest reason and reference have, with each character escaped; nothing larger is parsed
_MARK_REFUNDED: Final = "mark-refunded"
# bare or quoted; weak too, because a proxy that compresses makes the tag weak, and a version says all about a saga
_TAG: Final = re.compile(r'\A(?:W/(?="))?("?)([1-9][0-9]{0,8})\1\Z')
# what ends a line, what turns the text around it (bidi) or is not seen, and halves of surrogate pairs
_UNSEEN: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=500)]
    reference: Annotated[str, msgspec.Meta(max_length=100)] | None = None


def parse(name: str, body: bytes, if_match: Sequence[str], actor: str) -> moves.Action:
    """Read an action; `if_match` holds every If-Match header: one version, or `*` for whatever there is.

    Raises:
        NotFoundError: there is no action of this name.
        MalformedRequestError, RequestInvalidError: the body is not one, a reason is required, and for a refund a reference; or
            If-Match names no version.

    """
    if name not in EVENTS:
        raise errors.NotFoundError("There is no such action.")
    if len(body) > BODY_MAX_BYTES:
        raise errors.MalformedRequestError(f"An action has at most {BODY_MAX_BYTES} bytes.")
    tree = strictjson.read(body) if body else {}
    try:
        found = msgspec.convert(tree, _Body)
    except msgspec.ValidationError as exc:
        fault = domain.field_error(str(exc))
        raise _invalid(fault.pointer, fault.code) from exc
    if domain.holds_card_number(found.reason) or domain.holds_card_number(found.reference or ""):  # both are short by now
        raise _invalid("", "card_number")
    if name != _MARK_REFUNDED and found.reference is not None:
        raise _invalid("/reference", "unknown_field")
    return moves.Action(
        event=EVENTS[name],
        reason=_line(found.reason, "/reason"),
        reference=_line(found.reference or "", "/reference") if name == _MARK_REFUNDED else None,
        actor=actor,
        version=_version(if_match),
    )


def _line(text: str, pointer: str) -> str:
    """Return one line that says something, as it is read: the history is shown in terminals, and PostgreSQL keeps no NUL."""
    if not text.strip():
        raise _invalid(pointer, "missing")
    if any(unicodedata.category(character) in _UNSEEN for character in text):
        raise _invalid(pointer, "wrong_format")
    return text.strip()


def _version(if_match: Sequence[str]) -> int | None:
    if [tag.strip() for tag in if_match] == ["*"]:
        return None
    found = _TAG.match(if_match[0].strip()) if len(if_match) == 1 else None
    if not found:
        # not 412: nothing was compared, and no version would have helped
        detail = 'Send the version that you looked at, once, as If-Match: "3".'
        raise errors.RequestInvalidError(detail, errors=(FieldError(pointer="", code="if_match"),))
    return int(found.group(2))


def _invalid(pointer: str, code: str) -> errors.RequestInvalidError:
    detail = "The request is not an operator's action; `errors` points at what is wrong."
    return errors.RequestInvalidError(detail, errors=(FieldError(pointer=pointer, code=code),))
