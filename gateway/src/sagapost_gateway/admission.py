"""Who calls, and whether the call may pass now: keys and limits as the order service knows them, kept for a moment; no database here.

A purse holds calls that were drawn from the client's one bucket, which all gateways share, and is valid for a second. So a key
is looked up again at least once a second while it is used, and a busy client costs one call to the order service per 50 ms.
"""

import asyncio
import math
import time
from collections import OrderedDict
from typing import Final

import msgspec

from sagapost_chassis import telemetry
from sagapost_chassis.errors import TransientError
from sagapost_contracts import access
from sagapost_gateway import edge, errors, strangers, upstream

PUBLIC: Final = "public"
KNOWN_S: Final = 1.0  # how long calls that were drawn may be used, and a key counts as looked up
NOBODY_S: Final = 5.0  # how long a key that nobody has is refused without asking
TRUSTED_S: Final = 30.0  # how long a known key counts while the order service cannot be asked
BATCH_S: Final = 0.05  # calls are drawn for so long in advance, and an empty bucket is asked as often
PATIENCE_S: Final = 0.25  # how long the caller of a known key waits for the order service to say that it may pass
FIRST_S: Final = 2.0  # the same for a key that is not known yet
BATCH_MAX: Final = 1000  # the order service's own limit
_KNOWN_MAX: Final = 10_000
_NOBODY_MAX: Final = 1_000


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """Whose key it is, what it may do, and the client's limit: a bucket of `burst` calls that fills at `rate_per_s`."""

    client: str
    key_id: int | None = None
    scopes: tuple[str, ...]
    rate_per_s: float
    burst: int


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """A call that may pass: its client and key, and the header fields that say how many more may."""

    client: str
    key_id: int | None = None
    headers: dict[str, str]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the order service says of a key; `client` is None when nobody has it."""

    client: str | None
    key_id: int | None = None
    scopes: tuple[str, ...]
    rate_per_s: float
    burst: int
    granted: int
    remaining: float


_JSON: Final = {"Content-Type": "application/json"}
_decode: Final = msgspec.json.Decoder(_Answer)


class Purse:
    """What is known of one key, and the calls drawn for it; times are those of the monotonic clock."""

    def __init__(self, who: Client | None = None, trusted_until_s: float = -math.inf) -> None:
        self.who = who
        self.trusted_until_s = trusted_until_s
        self.valid_until_s = -math.inf
        self.closed_until_s = -math.inf  # the bucket was empty: nothing is drawn before
        self.drawn_s = -math.inf
        self.tokens = 0
        self.remaining = 0.0
        self.waiting = 0
        self.failure: TransientError | None = None
        self.lock = asyncio.Lock()

    def want(self) -> int:
        """Give how many calls to draw: for those who wait, and for the next 50 ms, as far as a bucket has room for so many."""
        ahead = math.floor(self.who.rate_per_s * _gap_s(self.who)) if self.who else 1
        return min(max(1, self.waiting, ahead), BATCH_MAX)

    def fill(self, answer: _Answer, want: int, at_s: float) -> None:
        """Take over what the order service says."""
        self.failure, self.drawn_s = None, at_s
        if answer.client is None:
            self.refuse(at_s)
            return
        self.who = Client(
            client=answer.client, key_id=answer.key_id, scopes=answer.scopes, rate_per_s=answer.rate_per_s, burst=answer.burst
        )
        self.tokens, self.remaining = answer.granted, answer.remaining
        self.valid_until_s, self.trusted_until_s = at_s + KNOWN_S, max(self.trusted_until_s, at_s + TRUSTED_S)
        self.closed_until_s = at_s
        if answer.granted < want:
            missing_s = (1 - answer.remaining) / answer.rate_per_s if answer.granted == 0 else 0
            self.closed_until_s += max(missing_s, _gap_s(self.who))

    def refuse(self, at_s: float) -> None:
        """Note that nobody has this key."""
        self.failure, self.drawn_s = None, at_s
        self.who, self.tokens, self.trusted_until_s = None, 0, -math.inf
        self.valid_until_s = at_s + NOBODY_S

    def fill_alone(self, who: Client, at_s: float) -> None:
        """Give as many calls as the limit allows until the next try: how many are left for all, nobody says."""
        self.tokens, self.remaining = max(1, math.ceil(who.rate_per_s * PATIENCE_S)), 0
        self.valid_until_s = self.closed_until_s = at_s + PATIENCE_S
        self.failure, self.drawn_s = None, at_s

    def fail(self, failure: TransientError, at_s: float) -> None:
        """Note that nobody could be asked, for all who wait for the same."""
        self.failure, self.drawn_s = failure, at_s

    def fields(self, who: Client, at_s: float) -> dict[str, str]:
        """Give the fields of draft-ietf-httpapi-ratelimit-headers-10: `q` calls in `w` seconds, `r` left, all again in `t` seconds."""
        left = min(who.burst, self.tokens + self.remaining + (at_s - self.drawn_s) * who.rate_per_s)
        window_s = math.ceil(who.burst / who.rate_per_s)
        full_s = math.ceil((who.burst - left) / who.rate_per_s)
        return {"RateLimit-Policy": f'"client";q={who.burst};w={window_s}', "RateLimit": f'"client";r={math.floor(left)};t={full_s}'}


class Desk:
    """Lets calls pass, or not; it lives as long as the process."""

    def __init__(self, order: upstream.Order, *, env: str) -> None:
        self._order = order
        self._env = env
        demo = Client(client=access.DEMO, scopes=access.SCOPES, rate_per_s=1000, burst=1000)
        self._demo = Purse(demo, math.inf) if env == "development" else None
        self._known: OrderedDict[str, Purse] = OrderedDict()
        self._nobodys: OrderedDict[str, Purse] = OrderedDict()
        self._strangers = strangers.Strangers(order)

    async def admit(self, headers: edge.Headers, scope: str) -> Caller:
        """Let one call pass.

        Raises:
            UnauthorizedError: no key where one is needed, one that cannot be read, or that is nobody's.
            ScopeError: the key is not for this.
            LimitedError: the client has made as many calls as it may.
            TransientError: it cannot be found out whose key this is.

        """
        digest = edge.key_digest(headers, self._env)
        purse = self._demo if digest is None else self._purse(digest)
        if purse is None:
            raise errors.UnauthorizedError("Send an API key, as Authorization: Bearer sp_…", headers={"WWW-Authenticate": "Bearer"})
        purse.waiting += 1
        try:
            return await self._admitted(purse, digest, scope)
        finally:
            purse.waiting -= 1

    async def still_allows(self, headers: edge.Headers, scope: str) -> bool:
        """Look again at the key of a stream that goes on; it counts as another call, and a client that may make none loses the stream."""
        try:
            await self.admit(headers, scope)
        except (errors.UnauthorizedError, errors.ScopeError, errors.LimitedError):
            return False
        except TransientError:
            return True
        return True

    async def _admitted(self, purse: Purse, digest: str | None, scope: str) -> Caller:
        while True:  # each round draws, or somebody else did: it ends with a call that may pass, or with an empty bucket
            at_s = time.monotonic()
            if at_s < purse.valid_until_s:
                who = _allowed(purse.who, scope)
                if purse.tokens:
                    purse.tokens -= 1
                    return Caller(client=who.client, key_id=who.key_id, headers=purse.fields(who, at_s))
                if at_s < purse.closed_until_s:
                    raise _limited(purse, who, at_s)
            await self._drawn(purse, digest, at_s)

    async def _drawn(self, purse: Purse, digest: str | None, since_s: float) -> None:
        """Draw once for all who wait for the same key."""
        async with purse.lock:
            if purse.drawn_s >= since_s:
                if purse.failure:
                    raise purse.failure.with_traceback(None)
                return
            if purse.who is not None or digest is None:
                await self._draw(purse, digest, PATIENCE_S)
                return
            try:
                known = await self._strangers.is_known(digest)
            except TransientError as exc:
                purse.fail(exc, time.monotonic())
                raise
            if not known:
                purse.refuse(time.monotonic())
                return
            await self._draw(purse, digest, FIRST_S)
            self._sort(purse, digest)

    async def _draw(self, purse: Purse, digest: str | None, patience_s: float) -> None:
        want = purse.want()
        try:
            answer = await self._asked(digest, want, patience_s)
        except TransientError as exc:
            at_s = time.monotonic()
            if purse.who is None or at_s > purse.trusted_until_s:
                purse.fail(exc, at_s)
                raise
            telemetry.log.info("admission.alone", client=purse.who.client, reason=str(exc))
            purse.fill_alone(purse.who, at_s)
        else:
            purse.fill(answer, want, time.monotonic())

    async def _asked(self, digest: str | None, want: int, patience_s: float) -> _Answer:
        body = msgspec.json.encode({"sha256": digest, "want": want})
        try:
            async with asyncio.timeout(patience_s):
                answer = await self._order.call("POST", "/clients/admit", headers=_JSON, body=body, again=True)
        except TimeoutError as exc:
            raise errors.OrderTimeoutError(f"no admission within {patience_s:g} s") from exc
        if answer.status != 200:
            raise errors.OrderUnavailableError(f"the order service answered {answer.status} when it was asked for a key")
        try:
            return _decode.decode(answer.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise errors.OrderUnavailableError("the order service answered something else when it was asked for a key") from exc

    def _purse(self, digest: str) -> Purse:
        """Find or make a key's purse. Those that are nobody's are kept apart: however many are guessed, they push no client out."""
        for kept in (self._known, self._nobodys):
            if digest in kept:
                kept.move_to_end(digest)
                return kept[digest]
        purse = self._nobodys[digest] = Purse()
        if len(self._nobodys) > _NOBODY_MAX:
            self._nobodys.popitem(last=False)
        return purse

    def _sort(self, purse: Purse, digest: str) -> None:
        if purse.who is None:
            return
        self._nobodys.pop(digest, None)
        self._known[digest] = purse
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)


def _gap_s(who: Client) -> float:
    return min(BATCH_S, who.burst / who.rate_per_s)


def _allowed(who: Client | None, scope: str) -> Client:
    if who is None:
        challenge = 'Bearer error="invalid_token"'
        raise errors.UnauthorizedError("Nobody has this key, or it was revoked.", headers={"WWW-Authenticate": challenge})
    if scope not in who.scopes:
        challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
        raise errors.ScopeError(f"This key does not have the scope {scope}.", headers={"WWW-Authenticate": challenge})
    return who


def _limited(purse: Purse, who: Client, at_s: float) -> errors.LimitedError:
    wait_s = max(1, math.ceil(purse.closed_until_s - at_s))
    fields = purse.fields(who, at_s) | {"RateLimit": f'"client";r=0;t={wait_s}', "Retry-After": str(wait_s)}
    detail = f"This client may make {who.rate_per_s:g} calls a second, and {who.burst} at once. Try again in {wait_s} s."
    return errors.LimitedError(detail, headers=fields)
