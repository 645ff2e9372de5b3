"""Sagas over HTTP: one, with waiting; its events as they come; the operators' list and actions; it must not know SQL."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final
from uuid import UUID

import litestar
import msgspec
from litestar import response

from sagapost_chassis import db, problems, telemetry, web, web_lines
from sagapost_chassis.errors import FieldError, TransientError
from sagapost_contracts import access
from sagapost_order import actions, domain, errors, handlers, moves, resources, saga_queries, states, watch

WAIT_MAX_S: Final = 30
COMMENT_S: Final = 15
_LIST: Final = 50
_FILTERS: Final = ("state", "stuck", "attention", "limit", "cursor")
_UUID: Final = re.compile(r"\A[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_WAIT: Final = re.compile(r"(?:\A|[,; \t])wait[ \t]*=[ \t]*([0-9]{1,6})(?:\Z|[,; \t])", re.IGNORECASE)
_SEQ: Final = re.compile(r"\A[0-9]{1,9}\Z")
_MEDIA_TYPE: Final = re.compile(r'\Aapplication/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-8"?[ \t]*)?\Z', re.IGNORECASE)

Message = response.ServerSentEventMessage


def routes(pool: db.Pool, policy: states.Policy, watcher: watch.Watch) -> list[Any]:
    """Give the route handlers."""

    @litestar.get(["/sagas/{saga_id:str}", "/ops/sagas/{saga_id:str}"])
    async def saga(request: problems.Request, saga_id: str) -> litestar.Response[bytes]:
        """Show a saga with its steps and history; its ETag is its version. `Prefer: wait=N` waits for the next one."""
        found, owner = _uuid(saga_id), _owner(request)
        tags, wait_s = request.headers.get("if-none-match", ""), _wait_s(request.headers.get("prefer", ""))
        row, order, history = await handlers.get_saga(pool, found, owner=owner)
        known = not tags or _matches(tags, row.version)
        if known and not states.is_done(row.state, row.deadline_at) and wait_s and await _newer(request, watcher, row, wait_s):
            async with watcher.turns:
                row, order, history = await handlers.get_saga(pool, found, owner=owner)
        headers = {"ETag": f'"{row.version}"', "Cache-Control": "no-cache"}
        if wait_s:
            web_lines.note(request.scope, waits=True)
            headers["Preference-Applied"] = f"wait={wait_s}"
        if _matches(tags, row.version):
            return litestar.Response(b"", status_code=304, headers=headers)
        return web.json(resources.saga(row, order, history, for_operator=owner is None), headers=headers)

    @litestar.get(["/sagas/{saga_id:str}/events", "/ops/sagas/{saga_id:str}/events"])
    async def followed(request: problems.Request, saga_id: str) -> response.ServerSentEvent:
        """Show a saga's history, row by row as it is written, until the saga is done."""
        found = _uuid(saga_id)
        last = request.headers.get("last-event-id", "")
        web_lines.note(request.scope, waits=True)
        async with watcher.turns:
            row, _ = await handlers.get_history(pool, found, domain.MAX_ID, owner=_owner(request))  # 404 before the stream begins
        # no row has a larger number: whoever names one has seen another saga
        after = int(last) if _SEQ.match(last) and int(last) <= row.version else 0
        events = stream(pool, watcher, found, after, for_operator=_owner(request) is None)
        return response.ServerSentEvent(events, headers={"Cache-Control": "no-cache"})

    @litestar.get("/sagas")
    async def sagas(request: problems.Request) -> litestar.Response[bytes]:
        """List sagas for an operator: the newest order first, filtered by state, stuck, attention; `cursor` goes on."""
        query = filters(request, _FILTERS)
        limit = number(query.get("limit", str(_LIST)), "limit", saga_queries.LIST_MAX)
        found = await handlers.get_sagas(
            pool,
            state=_state(query.get("state")),
            stuck=_flag(query.get("stuck"), "stuck"),
            attention=_flag(query.get("attention"), "attention"),
            before_order=number(query["cursor"], "cursor", domain.MAX_ID) if "cursor" in query else None,
            limit=limit,
        )
        return web.json(resources.sagas(found, more=len(found) == limit))

    @litestar.post("/sagas/{saga_id:str}/{action:str}", status_code=202)
    async def act(request: problems.Request, saga_id: str, action: str) -> litestar.Response[bytes]:
        """Do what an operator wants with the saga that was looked at: If-Match is its version."""
        found = _uuid(saga_id)
        body = await request.body()
        if body:  # nothing has no media type, and no reason either
            require_json(request)
        wanted = actions.parse(action, body, request.headers.getall("if-match", []), client_of(request))
        await moves.act(pool, policy, found, wanted)
        row, order, history = await handlers.get_saga(pool, found, owner=None)
        headers = {"ETag": f'"{row.version}"', "Location": resources.saga_path(found)}
        return web.json(resources.saga(row, order, history, for_operator=True), status=202, headers=headers)

    @litestar.post("/sagas/{saga_id:str}/receipt", status_code=200)
    async def receipt(saga_id: str) -> litestar.Response[bytes]:
        """Answer the email service's question before a receipt: whether it may send it, and for how long."""
        return web.json(resources.permission(await moves.ask_receipt(pool, policy, _uuid(saga_id))))

    return [saga, followed, sagas, receipt, act]


def client_of(request: problems.Request) -> str:
    """Give the name of the client that the gateway has recognised; only gateways may reach this service, for it believes them."""
    return request.headers.get("sagapost-client", "")[:100] or access.DEMO


def _owner(request: problems.Request) -> str | None:
    """Give whose sagas may be seen: the client's own, and under /ops, which the gateway opens only to operators, everybody's."""
    return None if request.url.path.startswith("/ops/") else client_of(request)


def require_json(request: problems.Request) -> None:
    """Let pass only a body that is announced as plain JSON in UTF-8.

    Raises:
        MediaTypeError: it is announced as something else, or as encoded.

    """
    if not _MEDIA_TYPE.match(request.headers.get("content-type", "")):
        raise errors.MediaTypeError("Send Content-Type: application/json.")
    if "content-encoding" in request.headers:
        raise errors.MediaTypeError("Send the body without Content-Encoding.")


async def stream(
    pool: db.Pool, watcher: watch.Watch, saga_id: UUID, after: int, *, comment_s: float = COMMENT_S, for_operator: bool = False
) -> AsyncGenerator[Message]:
    """Give the history behind seq `after`, then each row as it is written, and the end when the saga is done.

    Where nothing happens a comment is sent every `comment_s` seconds, so that nobody between takes the connection for dead.
    """
    yield Message(data=None, retry=1000, comment="a saga's history, one row an event")
    try:
        while True:
            async with watcher.turns:
                row, history = await handlers.get_history(pool, saga_id, after, owner=None)
            for entry in history:
                yield Message(
                    event="transition", id=entry.seq, data=msgspec.json.encode(resources.history_row(entry, for_operator=for_operator))
                )
            after = history[-1].seq if history else row.version
            if after < row.version:
                continue
            if states.is_done(row.state, row.deadline_at):
                yield Message(event="end", data=msgspec.json.encode({"state": row.state}))
                return
            while not await watcher.newer(saga_id, row.version, comment_s):
                if watcher.ending:
                    return
                yield Message(data=None, comment="still here")
    except TransientError as exc:  # the answer has begun and cannot become a 503: its end makes the client ask again
        telemetry.log.warning("events.broken", reason=str(exc))


async def _newer(request: problems.Request, watcher: watch.Watch, row: domain.Saga, wait_s: int) -> bool:
    """Wait for a later version of a saga, as long as the client does."""
    moved = asyncio.create_task(watcher.newer(row.id, row.version, wait_s))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({moved, gone}, return_when=asyncio.FIRST_COMPLETED)
        return moved.done() and moved.result()
    finally:
        moved.cancel()
        gone.cancel()


async def _gone(request: problems.Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _uuid(text: str) -> UUID:
    if not _UUID.match(text):
        raise errors.NotFoundError("There is nothing of this id.")
    return UUID(text)


def _matches(if_none_match: str, version: int) -> bool:
    # RFC 9110, 13.1.2: weak comparison, and `*` is whatever there is
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return tags == ["*"] or f'"{version}"' in tags


def _wait_s(prefer: str) -> int:
    found = _WAIT.search(prefer)
    return min(int(found.group(1)), WAIT_MAX_S) if found else 0


def filters(request: problems.Request, names: Sequence[str]) -> dict[str, str]:
    """Give the filters by name: one that is misspelt or given twice would silently show something else than was asked for."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names or name in given:
            raise wrong("", f"The filters are {', '.join(names)}, each once.", "unknown_field")
        given[name] = str(value)
    return given


def _state(text: str | None) -> str | None:
    if text is not None and text not in states.STATES:
        raise wrong("/state", f"A state is one of {', '.join(states.STATES)}.")
    return text


def _flag(text: str | None, name: str) -> bool:
    if text not in {None, "", "true", "false", "1", "0"}:
        raise wrong(f"/{name}", f"{name} is true or false.")
    return text in {"", "true", "1"}


def number(text: str, name: str, at_most: int) -> int:
    """Return a number from 1 to `at_most`."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not 1 <= int(text) <= at_most:
        raise wrong(f"/{name}", f"{name} is a number from 1 to {at_most}.")
    return int(text)


def wrong(pointer: str, detail: str, code: str = "out_of_range") -> errors.RequestInvalidError:
    """Return the refusal of one filter."""
    return errors.RequestInvalidError(detail, errors=(FieldError(pointer=pointer, code=code),))
