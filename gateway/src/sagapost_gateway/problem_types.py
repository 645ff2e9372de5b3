"""What each problem type means and what to do about it: the one table behind the pages under /problems; it must not know HTTP."""

from typing import Final

import msgspec

from sagapost_chassis import problems


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One type of problem: its usual status, what it is called, what happened, and what whoever called may do."""

    status: int
    title: str
    meaning: str
    remedy: str


_AGAIN: Final = "Wait as long as Retry-After says, then repeat the request. A checkout is repeated safely with the same Idempotency-Key."

KINDS: Final[dict[str, Kind]] = {
    "malformed-request": Kind(
        status=400,
        title=problems.TITLES["malformed-request"],
        meaning="The bytes are not HTTP/1.1 that can be read in exactly one way, or the body is not one JSON document: not UTF-8, a key "
        "twice, deeper than 8 levels, cut off.",
        remedy="`detail` says what is wrong. Nothing was done; correct the request before you repeat it.",
    ),
    "idempotency-key-invalid": Kind(
        status=400,
        title=problems.TITLES["idempotency-key-invalid"],
        meaning="The key is empty, there twice, longer than 255 characters, or holds something other than visible ASCII, an e-mail address "
        "or a card number. Keys are stored, so that nothing private may stand in them.",
        remedy="Send one key, best a random UUID, bare or in double quotes.",
    ),
    "unauthorized": Kind(
        status=401,
        title=problems.TITLES["unauthorized"],
        meaning="There is no API key, or one that is unknown, revoked or for another environment.",
        remedy="Send Authorization: Bearer and a valid key.",
    ),
    "insufficient-scope": Kind(
        status=403,
        title=problems.TITLES["insufficient-scope"],
        meaning="The key is good, but it has not the scope that this operation needs.",
        remedy="Use a key with that scope, or ask whoever made the key.",
    ),
    "cross-site-request": Kind(
        status=403,
        title=problems.TITLES["cross-site-request"],
        meaning="A browser sent the request for a page of another site, as Origin or Sec-Fetch-Site says. Nothing was done.",
        remedy="Call the API from your own server, or let the operator name the page's origin in SAGAPOST_CORS_ORIGINS.",
    ),
    "not-found": Kind(
        status=404,
        title=problems.TITLES["not-found"],
        meaning="The path, or the identifier in it, names nothing that you may see.",
        remedy="Check the address: identifiers are written as they were given, without doubled or trailing slashes.",
    ),
    "method-not-allowed": Kind(
        status=405,
        title=problems.TITLES["method-not-allowed"],
        meaning="The resource exists, but not for this HTTP method.",
        remedy="Use a method that the Allow header or the documentation names.",
    ),
    "request-timeout": Kind(
        status=408,
        title=problems.TITLES["request-timeout"],
        meaning="The headers or the body were not complete in time.",
        remedy="Send the whole request at once, on a new connection. Nothing was done.",
    ),
    "idempotency-in-progress": Kind(
        status=409,
        title=problems.TITLES["idempotency-in-progress"],
        meaning="Another request with the same Idempotency-Key has no answer yet.",
        remedy="Repeat the request in a moment: it gets the first one's answer.",
    ),
    "order-not-cancellable": Kind(
        status=409,
        title=problems.TITLES["order-not-cancellable"],
        meaning="The order is finished, and the time in which it could be cancelled is over.",
        remedy="Nothing was changed. What is left is a return.",
    ),
    "saga-action-not-possible": Kind(
        status=409,
        title=problems.TITLES["saga-action-not-possible"],
        meaning="The state in which the saga is has no use for this action.",
        remedy="Look at the saga again. That the action was tried stands in its history.",
    ),
    "version-mismatch": Kind(
        status=412,
        title=problems.TITLES["version-mismatch"],
        meaning="The saga has another version than the one in If-Match: it has moved since it was looked at.",
        remedy="Look again, then send the version you see as If-Match.",
    ),
    "payload-too-large": Kind(
        status=413,
        title=problems.TITLES["payload-too-large"],
        meaning="A checkout's body may have 8 KiB, any other 64 KiB.",
        remedy="Send less. Nothing was done.",
    ),
    "unsupported-media-type": Kind(
        status=415,
        title=problems.TITLES["unsupported-media-type"],
        meaning="The body is announced as another type, in another character set, or as compressed.",
        remedy="Send plain UTF-8 JSON with Content-Type: application/json and no Content-Encoding.",
    ),
    "misdirected-request": Kind(
        status=421,
        title=problems.TITLES["misdirected-request"],
        meaning="The gateway does not answer to the host in the Host header. In development these are loopback names and allowed ones.",
        remedy="Use another address, or let the operator name the host in SAGAPOST_ALLOWED_HOSTS or SAGAPOST_DEVELOPMENT_HOSTS.",
    ),
    "validation-failed": Kind(
        status=422,
        title=problems.TITLES["validation-failed"],
        meaning="The JSON is well formed, but a field is missing, unknown, of the wrong type or out of its range.",
        remedy="`errors` points at each wrong field with a JSON pointer and a code.",
    ),
    "price-changed": Kind(
        status=422,
        title=problems.TITLES["price-changed"],
        meaning="The cart shows another price than the catalogue. Nothing was ordered.",
        remedy="Show the customer `current_price` and ask again, with a new Idempotency-Key.",
    ),
    "unknown-product": Kind(
        status=422,
        title=problems.TITLES["unknown-product"],
        meaning="The cart holds a product that is not in the catalogue. Nothing was ordered.",
        remedy="Take it out of the cart, or look at GET /api/products.",
    ),
    "idempotency-key-reused": Kind(
        status=422,
        title=problems.TITLES["idempotency-key-reused"],
        meaning="The key belongs to a request with another body.",
        remedy="Take a new key for a new cart; the same key repeats the same body.",
    ),
    "rate-limited": Kind(
        status=429,
        title=problems.TITLES["rate-limited"],
        meaning="This client has made as many calls as it may for now, or this user has too many declined payments; `detail` says which.",
        remedy="Wait as long as Retry-After says; the RateLimit fields say how many calls are left. Nothing was done.",
    ),
    "internal-error": Kind(
        status=500,
        title=problems.TITLES["internal-error"],
        meaning="A failure that nobody expected. It is logged under `trace_id`.",
        remedy="Repeat a checkout only with the same Idempotency-Key, and report the trace id.",
    ),
    "temporarily-unavailable": Kind(
        status=503,
        title=problems.TITLES["temporarily-unavailable"],
        meaning="Something that is needed, such as a database, does not answer.",
        remedy=_AGAIN,
    ),
    "order-service-unavailable": Kind(
        status=503,
        title=problems.TITLES["order-service-unavailable"],
        meaning="The order service could not be reached, broke off or failed. Whether the request took effect may be unknown.",
        remedy=_AGAIN,
    ),
    "circuit-open": Kind(
        status=503,
        title=problems.TITLES["circuit-open"],
        meaning="The order service failed several times in a row; until it is ready again nothing is sent to it. Nothing was done.",
        remedy=_AGAIN,
    ),
    "overloaded": Kind(
        status=503,
        title=problems.TITLES["overloaded"],
        meaning="More calls, streams or connections are open than can be served well. Nothing was done.",
        remedy=_AGAIN,
    ),
    "upstream-timeout": Kind(
        status=504,
        title=problems.TITLES["upstream-timeout"],
        meaning="The deadline is over. Whether the request took effect is not known.",
        remedy="Repeat a checkout with the same Idempotency-Key: it is never done twice. Look before you repeat anything else.",
    ),
}
