"""What `saga` asks of the gateway, and what each refusal means as an exit code; it prints nothing."""

import uuid
from collections.abc import Mapping
from typing import Final, TypeVar
from urllib.parse import urlencode

import msgspec

from sagapost_contracts import access
from sagapost_ops import client, environment, errors, targets
from sagapost_ops.saga import resources

PAGE_MAX: Final = 200
_ORDER_MAX: Final = 2**63 - 1
_MAKE: Final = "make one with: ./sagapost keys create --client NAME --scope ops:read"
_AWAY: Final = frozenset({429, 502, 503, 504})

T = TypeVar("T")


def gateway_url(port_offset: int) -> str:
    """Find the gateway: the environment's, or the running stack's.

    Raises:
        UnfitError: neither is there.

    """
    try:
        return targets.need(targets.find(port_offset), "gateway_url")
    except errors.NothingMatchedError as exc:
        raise errors.UnfitError(f"{exc.message} (or set SAGAPOST_GATEWAY_URL)") from exc


def is_name(text: str) -> bool:
    """Tell whether this can be a saga's id or an order's number."""
    return _saga_id(text) is not None or _is_number(text)


def find(gateway: client.Client, name: str) -> str:
    """Give the id of the saga that is meant by its own id or by its order's number.

    Raises:
        NothingMatchedError: there is no such order.
        UnfitError, FailedError: the gateway does not answer, or not so.

    """
    if not _is_number(name):
        return _saga_id(name) or name
    number = int(name)
    found: list[msgspec.Raw] = []
    if number < _ORDER_MAX:
        found, _ = _page(gateway, {"limit": "1", "cursor": str(number + 1)})  # the newest before the next one
    for one in found:
        listed_saga = decoded(bytes(one), resources.Listed)
        if listed_saga.order_id == number:
            return listed_saga.saga_id
    raise errors.NothingMatchedError(f"there is no order {number}; see: ./sagapost saga list")


def read(gateway: client.Client, saga_id: str) -> bytes:
    """Read a saga's document.

    Raises:
        NothingMatchedError: there is no such saga.
        UnfitError, FailedError: the gateway does not answer, or not so.

    """
    answer = gateway.call("GET", f"/api/ops/sagas/{saga_id}", headers=credentials())
    checked(answer, missing=f"there is no saga {saga_id}; see: ./sagapost saga list")
    return answer.body


def listed(gateway: client.Client, filters: Mapping[str, str], limit: int) -> tuple[list[msgspec.Raw], bool]:
    """Read up to `limit` sagas, the newest first, page by page, and whether there are more.

    Raises:
        UnfitError, FailedError: the gateway does not answer, or not so.

    """
    found: list[msgspec.Raw] = []
    cursor: str | None = None
    while True:
        query = {**filters, "limit": str(min(PAGE_MAX, limit + 1 - len(found)))} | ({"cursor": cursor} if cursor else {})
        sagas, cursor = _page(gateway, query)
        found.extend(sagas)
        if cursor is None or len(found) > limit:
            return found[:limit], len(found) > limit


def act(gateway: client.Client, saga_id: str, action: str, version: int, body: Mapping[str, str]) -> bytes:
    """Do what an operator wants with the version that was looked at, and give the saga's document as it is then.

    Raises:
        NothingMatchedError: there is no such saga.
        FailedError: refused; nothing has changed.
        UnfitError: the gateway does not answer.

    """
    answer = gateway.call("POST", f"/api/ops/sagas/{saga_id}/{action}", body, {**credentials(), "If-Match": f'"{version}"'})
    if answer.status == 412:
        raise errors.FailedError(f"{said(answer)} Nothing has changed; see: ./sagapost saga show {saga_id}")
    if answer.status == 504:
        raise errors.UnfitError(
            f"no answer in time, so it may have been done or not; look before you repeat it: ./sagapost saga show {saga_id}"
        )
    checked(answer, missing=f"there is no saga {saga_id}; see: ./sagapost saga list")
    return answer.body


def decoded(body: bytes, kind: type[T]) -> T:
    """Read a document of the gateway.

    Raises:
        UnfitError: it is something else.

    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise errors.UnfitError(f"the gateway answered something else than expected: {exc}; is it of another version?") from exc


def checked(answer: client.Answer, *, missing: str) -> None:
    """Let a success pass.

    Raises:
        NothingMatchedError: 404, with the sentence `missing`.
        UnfitError: the gateway cannot answer now.
        FailedError: it refused.

    """
    if answer.status < 300:
        return
    if answer.status == 404:
        raise errors.NothingMatchedError(missing)
    if answer.status == 401:
        raise errors.UnfitError(f"{said(answer)} Set {environment.API_KEY} to one; {_MAKE}")
    if answer.status in _AWAY:
        raise errors.UnfitError(f"the gateway answered {answer.status}: {said(answer)} See ./sagapost status")
    raise errors.FailedError(f"refused ({answer.status}): {said(answer)}")


def said(answer: client.Answer) -> str:
    """Give the sentence with which the gateway refused."""
    try:
        problem = msgspec.json.decode(answer.body, type=resources.Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        problem = resources.Problem()
    sentence = problem.detail or problem.title or answer.body[:200].decode(errors="replace") or "no reason was given."
    return " ".join((sentence, *(f"{one.pointer}: {one.code}." for one in problem.errors)))


def credentials() -> dict[str, str]:
    """Give the header with the operator's key; nothing without one, which does in development."""
    key = environment.read(environment.API_KEY)
    if key and access.env_of(key) is None:
        raise errors.UnfitError(f"{environment.API_KEY} does not hold an API key; {_MAKE}")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _page(gateway: client.Client, query: Mapping[str, str]) -> tuple[list[msgspec.Raw], str | None]:
    answer = gateway.call("GET", f"/api/ops/sagas?{urlencode(query)}", headers=credentials())
    checked(answer, missing="this gateway has no list of sagas; is it of an older version?")
    page = decoded(answer.body, resources.Page)
    return list(page.sagas), page.next_cursor


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _saga_id(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None
