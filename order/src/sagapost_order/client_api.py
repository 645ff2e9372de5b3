"""What gateways ask before they let a call through: whose key is this, and how many calls may pass; it must not know SQL."""

from typing import Annotated, Any, Final

import litestar
import msgspec

from sagapost_chassis import db, problems, web
from sagapost_order import client_queries, errors, handlers, saga_api

WANT_MAX: Final = 1000
KEYS_MAX: Final = 500


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A key's digest in hexadecimal, or None for a call without a key; and how many calls are to pass."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None
    want: Annotated[int, msgspec.Meta(ge=0, le=WANT_MAX)]


class Which(msgspec.Struct, frozen=True, kw_only=True):
    """Digests of keys that a gateway has not seen yet, in hexadecimal."""

    sha256: Annotated[tuple[Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")], ...], msgspec.Meta(max_length=KEYS_MAX)]


_decode: Final = msgspec.json.Decoder(Ask)
_decode_which: Final = msgspec.json.Decoder(Which)


def routes(pool: db.Pool, *, env: str) -> list[Any]:
    """Give the route handler."""

    @litestar.post("/clients/admit", status_code=200)
    async def admit(request: problems.Request) -> litestar.Response[bytes]:
        """Tell whose key this is, and take calls from its client's bucket; nobody's is an answer too."""
        saga_api.require_json(request)
        try:
            ask = _decode.decode(await request.body())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise errors.MalformedRequestError("The body does not ask for an admission.") from exc
        if ask.sha256 is None and env != "development":
            return web.json(client_queries.Admission())
        return web.json(await handlers.admit(pool, bytes.fromhex(ask.sha256) if ask.sha256 else None, ask.want))

    @litestar.post("/clients/admit/keys", status_code=200)
    async def known(request: problems.Request) -> litestar.Response[bytes]:
        """Return which of many keys are somebody's: so a flood of random keys costs one question, and no client waits behind it."""
        saga_api.require_json(request)
        try:
            which = _decode_which.decode(await request.body())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise errors.MalformedRequestError("The body names no keys.") from exc
        return web.json({"known": await handlers.known_keys(pool, [bytes.fromhex(digest) for digest in which.sha256])})

    return [admit, known]
