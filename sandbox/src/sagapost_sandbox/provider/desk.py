"""Where requests meet the books: idempotency keys, delays and misbehaviour; knows no HTTP."""

import asyncio
import contextlib
import secrets
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

import msgspec

from sagapost_sandbox.provider import books, errors, tokens, wire

_RATE_STEPS: Final = 1_000_000
MAX_FLAKY: Final = 10_000

Gone = Callable[[], Awaitable[object]]
Answer = wire.Charge | wire.Refund


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, and whether it is a repetition."""

    answer: Answer
    replayed: bool = False


class Desk:
    """One per process; `stop` ends every wait at once, so that a hanging call does not hold up the end."""

    def __init__(self, opened: books.Books, delay_s: float, stop: asyncio.Event) -> None:
        self.books = opened
        self.behaviour = wire.Behaviour()
        self._delay_s = delay_s
        self._stop = stop
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._failed: dict[str, int] = {}
        self._kept: dict[str, errors.ProviderError] = {}

    async def charge(self, request: wire.ChargeRequest, key: str, gone: Gone) -> Result:
        """Handle a charge as its token says; `gone` returns when the client has left.

        Raises:
            ProviderError: a refusal, or trouble that the token or the behaviour asks for.

        """
        token = tokens.TOKENS.get(request.payment_method)
        if token is None:
            raise errors.RefusedError(400, "unknown_payment_method", "there is no such payment method")
        await self._misbehave(key)
        if token.hangs:
            await self._hang(gone)
        result = await self._once(key, books.fingerprint(request), lambda: self._charge_anew(request, key, token))
        if not result.replayed:
            await self._pause(token.answers_after_s)
            if token.error_after_charge:
                raise self._keep(key, errors.ProviderError(500, "internal_error", "something went wrong"))
        if self.behaviour.answered_amount is None:
            return result
        return msgspec.structs.replace(result, answer=msgspec.structs.replace(result.answer, amount=self.behaviour.answered_amount))

    async def refund(self, request: wire.RefundRequest, key: str) -> Result:
        """Handle a refund.

        Raises:
            ProviderError: a refusal, or trouble that the behaviour asks for.

        """
        await self._misbehave(key)

        async def anew() -> Answer:
            self._fail_first(f"refund:{request.reference}", self.behaviour.refund_failures)
            await self._pause(self._usual_delay_s())
            if self.behaviour.refund_declined is not None:
                # not remembered unless errors are kept: the same key is to succeed when told otherwise
                raise errors.RefusedError(422, self.behaviour.refund_declined, "The refund was declined.")
            return await self.books.refund(request, key, unchecked=self.behaviour.refunds_unchecked)

        return await self._once(key, books.fingerprint(request), anew)

    def find(self, reference: str) -> wire.Charges:
        """Look up the charges of a reference.

        Raises:
            UnavailableError: the behaviour says that it is down.

        """
        if self.behaviour.down:
            raise _down()
        return self.books.find(reference)

    async def _charge_anew(self, request: wire.ChargeRequest, key: str, token: tokens.Token) -> Answer:
        books.amount_of(request)
        # the faults of a key, or, where a key has only one answer, those of all keys together
        self._fail_first(request.reference if self.behaviour.keep_errors is True else key, token.failures_first)
        await self._pause(self._usual_delay_s() + token.takes_s)
        if token.declined is not None:
            code, message = token.declined
            await self.books.decline(key, books.fingerprint(request), wire.Refusal(code=code, message=message))
            raise errors.RefusedError(402, code, message)
        return await self.books.charge(request, key, self.behaviour.charged_amount)

    async def _once(self, key: str, fingerprint: str, anew: Callable[[], Awaitable[Answer]]) -> Result:
        """Let one request of a key through at a time; the ones behind it get its answer."""
        async with self._turn(key):
            kept = None if self.behaviour.ignore_idempotency_keys else self._kept.get(key)
            if kept is not None:
                raise errors.ProviderError(kept.status, kept.code, kept.message, replayed=True)
            known = None if self.behaviour.ignore_idempotency_keys else self.books.remembered(key)
            if known is None:
                try:
                    return Result(answer=await anew())
                except errors.ProviderError as exc:
                    raise self._keep(key, exc) from exc.__cause__
            if known.fingerprint != fingerprint:
                raise errors.RefusedError(422, "idempotency_key_reused", "this Idempotency-Key came with another body before")
            if isinstance(known.answer, wire.Refusal):
                raise errors.RefusedError(402, known.answer.code, known.answer.message)
            return Result(answer=known.answer, replayed=True)

    def _keep(self, key: str, exc: errors.ProviderError) -> errors.ProviderError:
        """Return an error, and keep it under its key when the behaviour says so."""
        if self.behaviour.keep_errors is True:
            self._kept[key] = exc
        return exc

    @contextlib.asynccontextmanager
    async def _turn(self, key: str) -> AsyncGenerator[None]:
        if self.behaviour.ignore_idempotency_keys:
            yield
            return
        lock = self._locks.get(key)  # kept alive by those who hold it or wait for it
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            yield

    async def _misbehave(self, key: str) -> None:
        if self.behaviour.down:
            raise _down()
        if secrets.randbelow(_RATE_STEPS) < self.behaviour.failure_rate * _RATE_STEPS:
            raise self._keep(key, errors.UnavailableError("try_again", "a passing fault; try again"))

    def _fail_first(self, purpose: str, failures: int) -> None:
        failed = self._failed.get(purpose, 0)
        if failed < failures:
            if len(self._failed) >= MAX_FLAKY:
                self._failed.pop(next(iter(self._failed)))
            self._failed[purpose] = failed + 1
            raise errors.UnavailableError("try_again", "a passing fault; try again")

    async def _hang(self, gone: Gone) -> None:
        waits = {asyncio.ensure_future(gone()), asyncio.ensure_future(self._stop.wait())}
        try:
            await asyncio.wait(waits, timeout=tokens.HANG_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        raise errors.UnavailableError("gave_up", "nobody was served")

    async def _pause(self, seconds: float) -> None:
        if seconds <= 0:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
            raise errors.UnavailableError("shutting_down", "the provider is shutting down")

    def _usual_delay_s(self) -> float:
        return self._delay_s if self.behaviour.delay_s is None else self.behaviour.delay_s


def _down() -> errors.UnavailableError:
    return errors.UnavailableError("provider_down", "the provider is down")
