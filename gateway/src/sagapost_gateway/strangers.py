"""Keys that this gateway has not seen yet: asked for many at a time, so that no number of random ones keeps a client waiting."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from sagapost_chassis.errors import TransientError
from sagapost_gateway import errors, upstream

BATCH_MAX: Final = 500  # the order service's own limit
WAITING_MAX: Final = 5_000
WAIT_S: Final = 2.0

_JSON: Final = {"Content-Type": "application/json"}


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    known: frozenset[str] | None = None


_decode: Final = msgspec.json.Decoder(_Known)


class Strangers:
    """Collects the digests of unknown keys while a call to the order service is under way, and asks for all of them in the next call."""

    def __init__(self, order: upstream.Order) -> None:
        self._order = order
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def is_known(self, digest: str) -> bool:
        """Return whether the key of this digest exists.

        Raises:
            TransientError: it cannot be found out in time.

        """
        if len(self._waiting) >= WAITING_MAX:
            raise errors.OrderUnavailableError("too many keys at once that are not known")
        answer = self._waiting.setdefault(digest, asyncio.get_running_loop().create_future())
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        try:
            async with asyncio.timeout(WAIT_S):
                return await asyncio.shield(answer)
        except TimeoutError as exc:
            raise errors.OrderTimeoutError(f"it was not found out within {WAIT_S:g} s whose key this is") from exc

    async def _ask(self) -> None:
        try:
            while self._waiting:
                batch = list(self._waiting)[:BATCH_MAX]
                try:
                    known: frozenset[str] | TransientError = await self._known(batch)
                except TransientError as exc:
                    known = exc
                for digest in batch:
                    _settle(self._waiting.pop(digest), digest, known)
        finally:
            self._asking = None

    async def _known(self, batch: Sequence[str]) -> frozenset[str]:
        body = msgspec.json.encode({"sha256": batch})
        answer = await self._order.call("POST", "/clients/admit/keys", headers=_JSON, body=body, again=True)
        if answer.status not in {200, 404}:
            raise errors.OrderUnavailableError(f"the order service answered {answer.status} when it was asked for keys")
        try:
            known = _decode.decode(answer.body).known
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise errors.OrderUnavailableError("the order service answered something else when it was asked for keys") from exc
        return frozenset(batch) if known is None else known  # None: one of the version before, which is asked for each key by itself


def _settle(answer: asyncio.Future[bool], digest: str, known: frozenset[str] | TransientError) -> None:
    if isinstance(known, frozenset):
        answer.set_result(digest in known)
        return
    answer.set_exception(known)
    answer.exception()  # whoever waited may have gone
