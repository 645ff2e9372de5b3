"""The provider over HTTP: parse, ask the desk, answer; knows no token."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import litestar
import msgspec

from sagapost_chassis import health, problems, settings, telemetry
from sagapost_sandbox.provider import desk, errors, tokens, wire

MAX_BODY_BYTES: Final = 16 * 1024
MAX_KEY_LENGTH: Final = 255
_JSON: Final = "application/json"
_CHARGE: Final = msgspec.json.Decoder(wire.ChargeRequest)
_REFUND: Final = msgspec.json.Decoder(wire.RefundRequest)
_BEHAVIOUR: Final = msgspec.json.Decoder(wire.Behaviour)

Request = litestar.Request[Any, Any, Any]
Answer = litestar.Response[bytes]
T = TypeVar("T")


def app(counter: desk.Desk) -> litestar.Litestar:
    """Put the application together."""

    @litestar.post("/v1/charges", status_code=200)
    async def charge(request: Request) -> Answer:
        """Take money."""
        key, wanted = _key(request), await _body(request, _CHARGE.decode)
        with telemetry.canonical("request.handled", "http", "charge", reference=wanted.reference) as line:
            if wanted.payment_method in tokens.TOKENS and tokens.TOKENS[wanted.payment_method].poison:
                line["outcome"] = "poison"
                return litestar.Response(tokens.POISON, media_type=_JSON)
            return await _answered(line, counter.charge(wanted, key, request.receive))

    @litestar.post("/v1/refunds", status_code=200)
    async def refund(request: Request) -> Answer:
        """Give money back."""
        key, wanted = _key(request), await _body(request, _REFUND.decode)
        with telemetry.canonical("request.handled", "http", "refund", reference=wanted.reference) as line:
            return await _answered(line, counter.refund(wanted, key))

    @litestar.get("/v1/charges", sync_to_thread=False)
    def find(reference: str) -> wire.Charges:
        """Look up charges by the caller's own reference."""
        return counter.find(reference)

    @litestar.get("/v1/ledger", sync_to_thread=False)
    def ledger(reference: str | None = None) -> list[wire.Movement]:
        """List all money that ever moved, oldest first; of one reference when asked so."""
        fitting = (entry for entry in counter.books.entries if reference in {None, entry.reference})
        return [msgspec.convert(entry, wire.Movement, from_attributes=True) for entry in fitting]

    @litestar.get("/v1/behaviour", sync_to_thread=False)
    def behaviour() -> wire.Behaviour:
        """Say how it misbehaves."""
        return counter.behaviour

    @litestar.put("/v1/behaviour")
    async def change_behaviour(request: Request) -> wire.Behaviour:
        """Misbehave otherwise from now on."""
        counter.behaviour = await _body(request, _BEHAVIOUR.decode)
        return counter.behaviour

    return litestar.Litestar(
        [charge, refund, find, ledger, behaviour, change_behaviour, *health.routes("provider", {}, mode=settings.DEVELOPMENT)],
        openapi_config=None,
        logging_config=None,  # litestar's would let every library's chatter through, addresses and all
        request_max_body_size=MAX_BODY_BYTES,
        exception_handlers={**problems.handlers(), errors.ProviderError: _refusal},
    )


def _key(request: Request) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise errors.RefusedError(400, "idempotency_key_missing", f"an Idempotency-Key of 1 to {MAX_KEY_LENGTH} characters is required")
    return key


async def _body(request: Request, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise errors.RefusedError(400, "invalid_request", f"the body cannot be read: {exc}") from exc


async def _answered(line: dict[str, object], result: Awaitable[desk.Result]) -> Answer:
    try:
        done = await result
    except errors.ProviderError as exc:
        line["outcome"] = exc.code
        return _error(exc)
    line["outcome"] = "replayed" if done.replayed else "succeeded"
    headers = {"Idempotent-Replayed": "true"} if done.replayed else None
    return litestar.Response(msgspec.json.encode(done.answer), media_type=_JSON, headers=headers)


def _refusal(_: Request, exc: errors.ProviderError) -> Answer:
    return _error(exc)


def _error(exc: errors.ProviderError) -> Answer:
    body = wire.Refused(error=wire.Refusal(code=exc.code, message=exc.message))
    headers = {"Idempotent-Replayed": "true"} if exc.replayed else None
    return litestar.Response(msgspec.json.encode(body), status_code=exc.status, media_type=_JSON, headers=headers)
