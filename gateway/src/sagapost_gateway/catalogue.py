"""The catalogue as the order service last gave it, kept in memory: reading it is public, so it must cost no call for each reader."""

import asyncio
import math
from typing import Final

import msgspec

from sagapost_chassis import telemetry
from sagapost_chassis.errors import TransientError
from sagapost_gateway import errors, upstream

FRESH_S: Final = 1.0  # the order service is asked at most so often, also when it fails
STALE_S: Final = 300.0  # how long the last catalogue is shown while the order service cannot be asked
_PATIENCE_S: Final = 0.5  # how long a reader waits for a new one while there is an old one


class Products(msgspec.Struct, frozen=True, kw_only=True):
    """The list as it was answered, and each product of it by id."""

    body: bytes
    products: dict[int, msgspec.Raw]


class _Numbered(msgspec.Struct, frozen=True, kw_only=True):
    id: int


_decode: Final = msgspec.json.Decoder(list[msgspec.Raw])
_decode_id: Final = msgspec.json.Decoder(_Numbered)


class Catalogue:
    """Holds the last catalogue and asks for the next one, once for all readers; times are those of the event loop's clock."""

    def __init__(self, order: upstream.Order) -> None:
        self._order = order
        self._last: Products | None = None
        self._failure: TransientError | None = None
        self._asked_s = self._got_s = -math.inf
        self._asking: asyncio.Task[None] | None = None

    async def get(self) -> Products:
        """Return the catalogue: not older than a second, or than STALE_S while the order service cannot be asked.

        Raises:
            TransientError: there is none, and it cannot be asked for.

        """
        clock = asyncio.get_running_loop().time
        if self._asking is None and clock() - self._asked_s >= FRESH_S:
            self._asked_s = clock()
            self._asking = asyncio.create_task(self._ask())
        old = self._last if clock() - self._got_s < STALE_S else None
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=_PATIENCE_S if old else None)
        kept = self._last if clock() - self._got_s < STALE_S else None
        if kept is not None:
            return kept
        raise (self._failure or errors.OrderUnavailableError("there is no catalogue yet")).with_traceback(None)

    async def _ask(self) -> None:
        try:
            answer = await self._order.call("GET", "/products")
            self._last, self._failure = _read(answer), None
            self._got_s = asyncio.get_running_loop().time()
        except TransientError as exc:
            self._failure = exc
            telemetry.log.info("catalogue.kept", reason=str(exc))
        finally:
            self._asking = None


def _read(answer: upstream.Answer) -> Products:
    if answer.status != 200:
        raise errors.OrderUnavailableError(f"the order service answered {answer.status} when it was asked for the catalogue")
    try:
        every = _decode.decode(answer.body)
        return Products(body=answer.body, products={_decode_id.decode(one).id: one for one in every})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise errors.OrderUnavailableError("the order service answered something else than a catalogue") from exc
