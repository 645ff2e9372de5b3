"""The payment provider: what payment needs of one, and an adapter over HTTP; it must not know our database or events."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Protocol
from uuid import UUID

import aiohttp
import msgspec

from sagapost_chassis import telemetry
from sagapost_contracts import money
from sagapost_payment import domain, errors

MAX_ANSWER_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 64
CONNECT_TIMEOUT_S: Final = 3
LOOKUP_TIMEOUT_S: Final = 5  # with one call before it still inside the drain of a stopping process
# statuses by which a provider refuses this very request; anything else tells nothing about the money
_REFUSALS: Final = frozenset({400, 402, 404, 410, 422})
_REPLAYED: Final = "Idempotent-Replayed"
_OUR_FAULT: Final = frozenset({401, 403, 405})
_BUSY: Final = frozenset({408, 425, 429, 502, 503, 504})  # any other request would have been answered like this


class Provider(Protocol):
    """A payment provider that honours idempotency keys and can be asked by our own reference.

    What a key must mean: two calls with one key and one body have one effect, at least while the order may be paid and its refund is
    asked for; while one of them is under way, the other waits or is refused. A provider may forget a key later; payment then
    finds what was done by reference.

    What a key need not mean: that a later call is tried anew. A provider may keep the first answer under a key for a day, an error
    included, as Stripe does. Payment goes on to the next generation of the key (`cap:{saga_id}`, `cap:{saga_id}:2`, …; `ref:…` and
    `dup:…` likewise) when the error is a kept one and, after it, `find` said that nothing was done. An error is a kept one when the
    answer has the header `Idempotent-Replayed: true`, or when `domain.KEPT_AFTER` calls under the key were answered with a server error.
    A call without an answer never leads to a new key: it may still be under way.

    What `find` must mean: what was done by a call that has been answered is found at once; by one without an answer, within a day.
    """

    async def charge(
        self, *, key: str, reference: UUID, amount: Decimal, currency: str, payment_method: str
    ) -> domain.Captured | domain.Declined | domain.Unknown:
        """Take the money.

        Raises:
            errors.ProviderUnavailableError: the request reached nobody.

        """
        ...

    async def find(self, reference: UUID) -> list[domain.Captured]:
        """Return the charges made under a reference, the oldest first, with their refunds; two mean that the provider forgot a key.

        Raises:
            errors.ProviderUnavailableError: there is no answer, which says nothing about the charge.

        """
        ...

    async def refund(
        self, *, key: str, reference: UUID, charge_id: str, amount: Decimal, currency: str
    ) -> domain.Refunded | domain.Declined | domain.Unknown:
        """Give the money back.

        Raises:
            errors.ProviderUnavailableError: the request reached nobody.

        """
        ...


# what our columns and the messages about it take; an answer with another name cannot be read
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]+\Z", max_length=255)]


class _Refund(msgspec.Struct, frozen=True, kw_only=True):
    refund_id: _Name
    reference: str
    amount: Decimal
    currency: str
    at: datetime


class _Charge(msgspec.Struct, frozen=True, kw_only=True):
    charge_id: _Name
    reference: str
    amount: Decimal
    currency: str
    status: str
    at: datetime
    refunds: tuple[_Refund, ...] = ()


class _Charges(msgspec.Struct, frozen=True, kw_only=True):
    charges: tuple[_Charge, ...]


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str = ""


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    error: _Refusal


_CHARGE: Final = msgspec.json.Decoder(_Charge)
_CHARGES: Final = msgspec.json.Decoder(_Charges)
_REFUND: Final = msgspec.json.Decoder(_Refund)
_ERROR: Final = msgspec.json.Decoder(_Error)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    body: bytes
    is_replayed: bool


def longest_s(timeout_s: float) -> float:
    """Give the seconds after which a call is over: a look-up, the call, a look-up, and as much as half a call for our own books."""
    return 1.5 * timeout_s + 2 * min(LOOKUP_TIMEOUT_S, timeout_s)


@asynccontextmanager
async def open_provider(url: str, timeout_s: float) -> AsyncGenerator["HttpProvider"]:
    """Open the adapter with its kept connections; a call may take `timeout_s` seconds in all."""
    # connections are given up before the server's usual 5 s: a request on one that is just being closed has an unknown outcome
    connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=4)
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        yield HttpProvider(session, timeout_s)


class HttpProvider:
    """The adapter; amounts travel as decimal strings."""

    def __init__(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        self._session = session
        self._lookup_timeout = aiohttp.ClientTimeout(total=min(LOOKUP_TIMEOUT_S, timeout_s), sock_connect=CONNECT_TIMEOUT_S)

    async def charge(
        self, *, key: str, reference: UUID, amount: Decimal, currency: str, payment_method: str
    ) -> domain.Captured | domain.Declined | domain.Unknown:
        """Take the money; see the Protocol."""
        body = {"amount": str(amount), "currency": currency, "reference": str(reference), "payment_method": payment_method}
        answer = await self._post("/v1/charges", key, body)
        if isinstance(answer, domain.Unknown):
            return answer
        try:
            return _captured(_CHARGE.decode(answer.body), reference) if answer.status < 300 else _refusal(answer)
        except _UNREADABLE as exc:
            return _unreadable(answer, exc)

    async def refund(
        self, *, key: str, reference: UUID, charge_id: str, amount: Decimal, currency: str
    ) -> domain.Refunded | domain.Declined | domain.Unknown:
        """Give the money back; see the Protocol."""
        body = {"charge": charge_id, "amount": str(amount), "currency": currency, "reference": str(reference)}
        answer = await self._post("/v1/refunds", key, body)
        if isinstance(answer, domain.Unknown):
            return answer
        try:
            return _refunded(_REFUND.decode(answer.body), reference) if answer.status < 300 else _refusal(answer)
        except _UNREADABLE as exc:
            return _unreadable(answer, exc)

    async def find(self, reference: UUID) -> list[domain.Captured]:
        """Ask for the charges made under a reference; see the Protocol."""
        try:
            params = {"reference": str(reference)}
            async with self._session.get(
                "/v1/charges", params=params, timeout=self._lookup_timeout, headers=_headers(), allow_redirects=False
            ) as response:
                answer = await _read(response)
            if answer.status != 200:
                refused = answer.status in _REFUSALS
                raise errors.ProviderUnavailableError(f"the look-up was answered with {answer.status}", counted=refused)
            return [_captured(charge, reference) for charge in _CHARGES.decode(answer.body).charges if charge.status == "succeeded"]
        except (aiohttp.ClientError, OSError, *_UNREADABLE) as exc:
            unreadable = isinstance(exc, _UNREADABLE)
            raise errors.ProviderUnavailableError(f"the look-up failed: {type(exc).__name__}: {exc}", counted=unreadable) from exc

    async def _post(self, path: str, key: str, body: Mapping[str, str]) -> _Answer | domain.Unknown:
        try:
            async with self._session.post(
                path, json=body, headers=_headers() | {"Idempotency-Key": key}, allow_redirects=False
            ) as response:
                answer = await _read(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            raise errors.ProviderUnavailableError(f"no connection to the provider: {exc}") from exc
        except TimeoutError:
            return domain.Unknown(cause="no answer in time", unanswered=True)
        except ValueError as exc:
            return domain.Unknown(cause=f"an answer that cannot be read: {exc}", unanswered=True, may_be_ours=True)
        except (aiohttp.ClientError, OSError) as exc:
            return domain.Unknown(cause=f"the connection broke: {type(exc).__name__}", unanswered=False)
        if answer.status in _OUR_FAULT:
            raise errors.ProviderUnavailableError(f"the provider does not let us in: {answer.status}")
        if answer.status >= 300 and answer.status not in _REFUSALS:
            is_error = answer.status >= 500
            return domain.Unknown(
                cause=f"answered with {answer.status}",
                unanswered=False,
                is_error=is_error,
                is_kept=is_error and answer.is_replayed,
                may_be_ours=answer.status not in _BUSY,
            )
        return answer


def _headers() -> dict[str, str]:
    traceparent = telemetry.current_traceparent()
    return {"traceparent": traceparent} if traceparent else {}


async def _read(response: aiohttp.ClientResponse) -> _Answer:
    body = bytearray()
    async for chunk in response.content.iter_chunked(16 * 1024):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"longer than {MAX_ANSWER_BYTES} bytes")
    is_replayed = response.headers.get(_REPLAYED, "").lower() == "true"
    return _Answer(status=response.status, body=bytes(body), is_replayed=is_replayed)


def _same(theirs: str, ours: UUID) -> None:
    if theirs != str(ours):
        raise ValueError("an answer about another reference")


def _captured(charge: _Charge, reference: UUID) -> domain.Captured:
    _same(charge.reference, reference)
    if charge.status != "succeeded":
        raise ValueError(f"a charge that is {charge.status!r}")
    taken = money.Money(amount=money.parse_amount(charge.amount), currency=charge.currency)
    back = tuple(_refunded(refund, reference) for refund in charge.refunds)
    return domain.Captured(transaction_id=charge.charge_id, amount=taken.amount, currency=taken.currency, at=charge.at, refunds=back)


def _refunded(refund: _Refund, reference: UUID) -> domain.Refunded:
    _same(refund.reference, reference)
    given = money.Money(amount=money.parse_amount(refund.amount), currency=refund.currency)
    return domain.Refunded(transaction_id=refund.refund_id, amount=given.amount, currency=given.currency, at=refund.at)


def _refusal(answer: _Answer) -> domain.Declined | domain.Unknown:
    refusal = _ERROR.decode(answer.body).error
    if refusal.code.startswith("idempotency_key"):
        # about the key, not about the money: an earlier call under it may well have charged
        return domain.Unknown(cause=f"answered with {refusal.code}", unanswered=True)
    return domain.Declined(code=_text(refusal.code, 100), reason=_text(refusal.message, 500))


def _text(theirs: str, length: int) -> str:
    return theirs.replace("\0", "")[:length]


def _unreadable(answer: _Answer, exc: Exception) -> domain.Unknown:
    cause = f"an answer ({answer.status}) that cannot be read: {type(exc).__name__}"
    return domain.Unknown(cause=cause, unanswered=True, may_be_ours=True)
