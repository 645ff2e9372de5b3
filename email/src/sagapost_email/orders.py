"""The order service, asked before a receipt leaves; it must not know how mails are sent."""

import asyncio
from typing import Final, Self
from uuid import UUID

import aiohttp
import msgspec

from sagapost_email import errors, gate

TIMEOUT_S: Final = 5.0
MARGIN_S: Final = 5.0  # of the granted time that is not used: an answer of the mail server has to be stored before it is over
MAX_ANSWER_BYTES: Final = 16 * 1024
HEADER: Final = "Sagapost-Secret"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the order service says; `lease_s`: how long it decides no refund, `state`: why not to send."""

    send: bool
    lease_s: float | None = None
    state: str = ""


_ANSWER: Final = msgspec.json.Decoder(Answer)
_OF_AN_EARLIER_VERSION: Final = Answer(send=True, lease_s=660)


class Orders:
    """Asks at `url`, with `secret` if there is one; without a URL every receipt may leave at any time."""

    def __init__(self, url: str = "", *, secret: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self.gate = gate.Gate()
        self._url = url
        self._headers = {HEADER: secret} if secret else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self._url:
            # given up before the server's usual 5 s: a request on a connection that is just being closed fails for nothing
            connector = aiohttp.TCPConnector(keepalive_timeout=4)
            self._session = aiohttp.ClientSession(self._url, connector=connector, timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, saga_id: UUID) -> float | None:
        """Ask whether the receipt of a saga may leave; return until when (the loop's time), None: at any time.

        Raises:
            errors.NotWantedError: it may not.
            errors.UnknownSagaError: the order service has no such saga.
            errors.OrderUnavailableError: there is no answer.

        """
        if self._session is None:
            return None
        asked_at = asyncio.get_running_loop().time()  # before the call: the order service counts from a later moment
        answer = await self._answer(self._session, saga_id)
        self.gate.passed()
        if not answer.send:
            raise errors.NotWantedError(answer.state)
        if answer.lease_s is None:
            raise errors.OrderUnavailableError("the order service's answer names no time")
        return asked_at + answer.lease_s - min(MARGIN_S, answer.lease_s / 4)

    async def _answer(self, session: aiohttp.ClientSession, saga_id: UUID) -> Answer:
        try:
            async with session.post(f"/sagas/{saga_id}/receipt", allow_redirects=False) as response:
                body = await response.content.read(MAX_ANSWER_BYTES)
                status = response.status
        except (aiohttp.ClientError, OSError) as exc:
            self.gate.failed()
            raise errors.OrderUnavailableError(f"no answer from the order service: {type(exc).__name__}") from exc
        if status in {404, 405}:
            return await self._unasked(session, saga_id)
        if status != 200:
            self.gate.failed()
            raise errors.OrderUnavailableError(f"the order service answered {status}")
        try:
            return _ANSWER.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise errors.OrderUnavailableError("the order service's answer cannot be read") from exc

    async def _unasked(self, session: aiohttp.ClientSession, saga_id: UUID) -> Answer:
        """Answer for an order service of an earlier version, which has the saga and not the question, while it is being replaced."""
        try:
            async with session.get(f"/ops/sagas/{saga_id}", allow_redirects=False) as response:
                if response.status == 200:
                    return _OF_AN_EARLIER_VERSION
                known = response.status == 404
        except (aiohttp.ClientError, OSError) as exc:
            self.gate.failed()
            raise errors.OrderUnavailableError(f"no answer from the order service: {type(exc).__name__}") from exc
        if known:
            raise errors.UnknownSagaError(f"the order service has no saga {saga_id}")
        raise errors.OrderUnavailableError("the order service does not say whether it has the saga")
