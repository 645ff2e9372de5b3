"""Checkout, and what can be read; one transaction each, without any knowledge of HTTP or the broker."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final, Generic, TypeVar
from uuid import UUID

import msgspec

from sagapost_chassis import crashpoints, db, ids, outbox, retention, telemetry
from sagapost_contracts import access, events, money
from sagapost_order import client_queries, domain, errors, moves, queries, saga, saga_queries, states

T = TypeVar("T")

FORGET_BATCH: Final = 500
_SETTLE_S: Final = 3
_SETTLE_POLL_S: Final = 0.05


class _Written(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What a checkout's transaction came to; `xid` is None when it wrote nothing."""

    outcome: T
    xid: int | None


def _there() -> bool:
    return False


def _require_client(gone: Callable[[], bool]) -> None:
    """Give up when the client went away while this waited for a connection to the database: nothing was written, and nobody waits."""
    if gone():
        raise errors.ClientGoneError("The client has gone away.")


async def checkout(
    pool: db.Pool,
    request: domain.CheckoutRequest,
    *,
    pay_window_s: float,
    started_s: float,
    client: str = access.DEMO,
    behind_s: float = 0,
    most_declines: int = 0,
    gone: Callable[[], bool] = _there,
) -> domain.Order:
    """Place an order: order, lines, saga, history and OrderCreated in one transaction, all at the transaction's one instant.

    Nothing is written when `gone()` says that the client has gone away before the first statement.
    `started_s` is the perf counter at the start of the request: what passed until the INSERT is the order's
    processing_duration_ms, because the row has to be written before its commit can be timed. `behind_s`: see saga.first_facts.
    `most_declines`: so many declined or open payments of the user within an hour refuse the order; 0: no limit.

    Raises:
        TooManyDeclinesError: nothing was written.
        UnknownProductError, PriceChangedError, RequestInvalidError: nothing was written.
        UnavailableError, NotStoredError: nothing was written.

    """
    saga_id = ids.uuid7()

    async def place(conn: db.Connection) -> _Written[domain.Order]:
        _require_client(gone)
        return await _place(conn, request, saga_id, pay_window_s, started_s, client=client, behind_s=behind_s, most_declines=most_declines)

    return await _store(pool, saga_id, place)


async def checkout_once(
    pool: db.Pool,
    request: domain.CheckoutRequest,
    key: domain.IdempotencyKey,
    *,
    answer: Callable[[domain.Order], domain.Answer],
    pay_window_s: float,
    started_s: float,
    behind_s: float = 0,
    most_declines: int = 0,
    gone: Callable[[], bool] = _there,
) -> domain.Answer:
    """Place an order and keep its answer under the key, in one transaction; give the kept answer to whoever repeats the key.

    `answer` makes the answer from the order. The kept one is looked up before anything is judged, so that a price that
    has changed since does not refuse a repetition.

    Raises:
        KeyInProgressError: the first request with this key has not ended; nobody waits for it, nothing was written.
        KeyReusedError: the key belongs to another body; nothing was written.
        UnknownProductError, PriceChangedError, RequestInvalidError, TooManyDeclinesError: nothing was written, the key is free.
        UnavailableError, NotStoredError: nothing was written, the key is free.

    """
    saga_id = ids.uuid7()

    async def place_once(conn: db.Connection) -> _Written[domain.Answer]:
        _require_client(gone)
        alone, kept = await queries.claim_key(conn, key)
        if kept:
            if kept.fingerprint != key.fingerprint:
                raise errors.KeyReusedError("Take a new key for a new cart; the same key repeats the same body.")
            await db.await_standbys(conn)
            return _Written(outcome=kept.answer, xid=None)
        if not alone:
            raise errors.KeyInProgressError
        placed = await _place(
            conn, request, saga_id, pay_window_s, started_s, client=key.client, behind_s=behind_s, most_declines=most_declines
        )
        first = answer(placed.outcome)
        if not await queries.keep_answer(conn, key, first, placed.outcome.id):
            raise errors.KeyInProgressError
        return _Written(outcome=first, xid=placed.xid)

    return await _store(pool, saga_id, place_once)


async def forget_answers(pool: db.Pool) -> int:
    """Delete at most FORGET_BATCH answers whose time is over, and return their number; several processes may do so at once."""
    async with db.transaction(pool) as conn:
        if not await retention.clocks_agree(conn):
            return 0
        return await queries.forget_answers(conn, domain.KEYS_KEPT, FORGET_BATCH)


async def get_order(pool: db.Pool, order_id: int, *, owner: str | None) -> domain.Order:
    """Read an order of the owner's; None, here and below, is an operator, who sees everybody's.

    Raises:
        NotFoundError: there is none of this id.

    """
    async with db.connection(pool) as conn:
        found = await queries.order(conn, order_id, owner)
    if found is None:
        raise errors.NotFoundError("There is no such order.")
    return found


async def get_orders(pool: db.Pool, client: str, *, status: str | None, before: int, limit: int) -> list[domain.Order]:
    """Read a client's own orders with ids below `before`, the newest first, at most `limit`."""
    async with db.connection(pool) as conn:
        return await queries.orders(conn, client, status=status, before=before, limit=limit)


async def get_saga(pool: db.Pool, saga_id: UUID, *, owner: str | None) -> tuple[domain.Saga, domain.Order, list[domain.HistoryRow]]:
    """Read a saga with its order and the newest 1,000 rows of its history.

    Raises:
        NotFoundError: there is none of this id.

    """
    async with db.connection(pool) as conn:
        found = await saga_queries.saga(conn, saga_id, owner)
        order = await queries.order(conn, found.order_id, owner) if found else None
        if found is None or order is None:
            raise errors.NotFoundError("There is no such saga.")
        return found, order, await saga_queries.history(conn, found, after=max(0, found.version - saga_queries.HISTORY_MAX))


async def get_history(pool: db.Pool, saga_id: UUID, after: int, *, owner: str | None) -> tuple[domain.Saga, list[domain.HistoryRow]]:
    """Read a saga and the rows of its history behind seq `after`, 1,000 at most.

    Raises:
        NotFoundError: there is none of this id.

    """
    async with db.connection(pool) as conn:
        found = await saga_queries.saga(conn, saga_id, owner)
        if found is None:
            raise errors.NotFoundError("There is no such saga.")
        return found, await saga_queries.history(conn, found, after=after)


async def get_sagas(
    pool: db.Pool, *, state: str | None, stuck: bool, attention: bool, before_order: int | None, limit: int
) -> list[saga_queries.Listed]:
    """List sagas for an operator, the newest order first."""
    async with db.connection(pool) as conn:
        return await saga_queries.listed(conn, state=state, stuck=stuck, attention=attention, before_order=before_order, limit=limit)


async def unfinished(pool: db.Pool) -> tuple[dict[str, saga_queries.Live], int]:
    """Count the sagas that have not ended, by state, and those that call an operator."""
    async with db.connection(pool) as conn:
        return {found.state: found for found in await saga_queries.live(conn)}, await saga_queries.calling(conn)


async def get_products(pool: db.Pool) -> list[domain.Product]:
    """Read the catalogue."""
    async with db.connection(pool) as conn:
        return await queries.products(conn)


async def get_product(pool: db.Pool, product_id: int) -> domain.Product:
    """Read one product.

    Raises:
        NotFoundError: there is none of this id.

    """
    async with db.connection(pool) as conn:
        found = await queries.product(conn, product_id)
    if found is None:
        raise errors.NotFoundError("There is no such product.")
    return found


async def known_keys(pool: db.Pool, sha256: Sequence[bytes]) -> list[str]:
    """Return, in hexadecimal, which of these digests are somebody's keys."""
    async with db.connection(pool) as conn:
        return await client_queries.known(conn, sha256)


async def admit(pool: db.Pool, sha256: bytes | None, want: int) -> client_queries.Admission:
    """Find whose key this is, and take up to `want` calls from the client's bucket.

    Not in a transaction of this service's kind: one statement, which commits by itself and has nothing to tell the relay.
    """
    async with db.connection(pool) as conn:
        return await client_queries.draw(conn, sha256, want)


async def _store(pool: db.Pool, saga_id: UUID, write: Callable[[db.Connection], Awaitable[_Written[T]]]) -> T:
    """Run a checkout's one transaction; a COMMIT that gets no answer is settled."""
    written: _Written[T] | None = None
    try:
        async with db.transaction(pool) as conn:
            written = await write(conn)
            await crashpoints.crashpoint("order.before_commit")
    except db.CommitUnknownError as exc:
        if written is None:
            raise
        if written.xid is not None:
            await _settle(pool, saga_id, written.xid, exc)
    if written.xid is not None:
        await crashpoints.crashpoint("order.after_commit")
        moves.TRANSITIONS.labels(states.NONE, states.ORDER_CREATED, states.CREATED, "applied").inc()
    return written.outcome


async def _refuse_many_declines(conn: db.Connection, client: str, user_id: int, most: int) -> None:
    if not await queries.lock_user(conn, client, user_id):
        raise errors.UserBusyError
    wait_s = await queries.declines(conn, client, user_id, most)
    if wait_s is not None:
        raise errors.TooManyDeclinesError(wait_s)


async def _place(
    conn: db.Connection,
    request: domain.CheckoutRequest,
    saga_id: UUID,
    pay_window_s: float,
    started_s: float,
    *,
    client: str,
    behind_s: float,
    most_declines: int,
) -> _Written[domain.Order]:
    if most_declines:
        await _refuse_many_declines(conn, client, request.user_id, most_declines)
    catalogue = {product.id: product for product in await queries.prices(conn, [item.product_id for item in request.items])}
    lines, total = domain.price_order(request.items, catalogue)
    at = next(iter(catalogue.values())).at
    facts, message_id, pay_before = saga.first_facts(at, pay_window_s, behind_s), ids.uuid7(), at + timedelta(seconds=pay_window_s)
    order = domain.Order(
        id=0,
        user_id=request.user_id,
        user_email=request.user_email,
        status=states.ORDER_STATUS[states.CREATED],
        currency=money.CURRENCY,
        total_amount=total,
        processing_duration_ms=round((time.perf_counter() - started_s) * 1000),
        created_at=at,
        updated_at=at,
        saga_id=saga_id,
        saga_state=states.CREATED,
        items=lines,
    )
    inserted = await queries.insert_order(
        conn,
        order,
        facts,
        client=client,
        payment_method=request.payment_method,
        pay_before=pay_before,
        message_id=message_id,
        trace_id=telemetry.current_trace_id(),
    )
    created = events.OrderCreated(
        order_id=inserted.id,
        saga_id=saga_id,
        user_id=request.user_id,
        user_email=request.user_email,
        amount=total,
        items=lines,
        payment_method=request.payment_method,
        pay_before=pay_before,
        pay_within_s=float(pay_window_s),
    )
    await outbox.add(conn, created, source=moves.SOURCE, message_id=message_id)
    return _Written(outcome=msgspec.structs.replace(order, id=inserted.id), xid=inserted.xid)


async def _settle(pool: db.Pool, saga_id: UUID, xid: int, cause: db.CommitUnknownError) -> None:
    """Learn on a new connection whether the transaction committed; return if it did.

    Raises:
        NotStoredError: it did not.
        UnavailableError: nobody can tell now.

    """
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        async with db.transaction(pool) as conn:
            outcome = await queries.commit_outcome(conn, saga_id, xid)
            if outcome.found:
                await db.await_standbys(conn)
        if outcome.found:
            return
        if not outcome.running or time.monotonic() > deadline_s:
            raise errors.NotStoredError("the order was not stored") from cause
        await asyncio.sleep(_SETTLE_POLL_S)
