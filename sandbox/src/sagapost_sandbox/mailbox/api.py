"""The mailbox over HTTP: Mailpit's paths for programs, pages for people, the behaviour for tests; knows no SMTP."""

from typing import Annotated, Any, Final

import litestar
import msgspec
from litestar import exceptions, params

from sagapost_chassis import health, problems, settings
from sagapost_sandbox.mailbox import mime, pages, smtp, store, wire

USUAL_PAGE: Final = 50
LARGEST_PAGE: Final = 10_000
_BEHAVIOUR: Final = msgspec.json.Decoder(wire.Behaviour)

Request = litestar.Request[Any, Any, Any]
Text = litestar.Response[str]
Start = Annotated[int, params.Parameter(ge=0)]
Wanted = Annotated[str, params.Parameter(max_length=200)]
Limit = Annotated[int, params.Parameter(ge=0, le=LARGEST_PAGE)]


def app(mails: store.Store, conduct: smtp.Conduct, *, back: str = "") -> litestar.Litestar:
    """Put the application together; `back` is the shop's address."""
    return litestar.Litestar(
        [*_for_programs(mails), *_for_people(mails, back), *_behaviour(conduct), *_health()],
        openapi_config=None,
        logging_config=None,  # litestar's would let every library's chatter through, addresses and all
        exception_handlers=problems.handlers(),
    )


def _for_programs(mails: store.Store) -> list[Any]:
    @litestar.get("/api/v1/messages", sync_to_thread=False)
    def messages(start: Start = 0, limit: Limit = USUAL_PAGE) -> wire.Page:
        """List the mails, newest first."""
        entries = mails.newest_first()
        shown = tuple(mime.summary(entry) for entry in entries[start : start + limit])
        return wire.Page(
            total=len(entries), unread=len(entries), count=len(shown), messages_count=len(entries), start=start, messages=shown
        )

    @litestar.delete("/api/v1/messages", status_code=200, sync_to_thread=False, media_type="text/plain")
    def clear() -> str:
        """Forget the mails so far."""
        mails.clear()
        return "ok"

    @litestar.get("/api/v1/message/{mail_id:str}", sync_to_thread=False)
    def message(mail_id: str) -> wire.Message:
        """Show one mail."""
        return mime.message(_one(mails, mail_id))

    @litestar.get("/api/v1/message/{mail_id:str}/headers", sync_to_thread=False)
    def headers(mail_id: str) -> dict[str, list[str]]:
        """Show a mail's headers."""
        return _one(mails, mail_id).headers

    @litestar.get("/api/v1/message/{mail_id:str}/raw", sync_to_thread=False)
    def raw(mail_id: str) -> litestar.Response[bytes]:
        """Show a mail as it came."""
        return litestar.Response(_one(mails, mail_id).raw, media_type="text/plain")

    return [messages, clear, message, headers, raw]


def _for_people(mails: store.Store, back: str) -> list[Any]:
    @litestar.get("/", sync_to_thread=False)
    def index(q: Wanted = "") -> Text:
        """Show the list, or what matches a search."""
        return _html(pages.index(pages.found(mails.newest_first(), q), q, back), pages.PAGE_POLICY)

    @litestar.get("/mail/{mail_id:str}", sync_to_thread=False)
    def mail(mail_id: str) -> Text:
        """Show one mail in its frame."""
        return _html(pages.mail(_one(mails, mail_id), back), pages.PAGE_POLICY)

    @litestar.get("/view/{name:str}", sync_to_thread=False)
    def view(name: str) -> Text:
        """Show a mail's own HTML, the frame's content."""
        return _html(pages.body(_one(mails, name.removesuffix(".html"))), pages.MAIL_POLICY)

    return [index, mail, view]


def _behaviour(conduct: smtp.Conduct) -> list[Any]:
    @litestar.get("/behaviour", sync_to_thread=False)
    def behaviour() -> wire.Behaviour:
        """Say how it misbehaves."""
        return conduct.behaviour

    @litestar.put("/behaviour")
    async def change(request: Request) -> wire.Behaviour:
        """Misbehave otherwise from now on."""
        try:
            conduct.behaviour = _BEHAVIOUR.decode(await request.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise exceptions.ClientException(f"the behaviour cannot be read: {exc}") from exc
        return conduct.behaviour

    return [behaviour, change]


def _health() -> list[Any]:
    @litestar.get(["/livez", "/readyz", "/health", "/health/live", "/health/ready"], sync_to_thread=False)
    def healthy() -> health.Health:
        """Say that it runs; it depends on nothing."""
        return health.Health(service="mailbox", mode=settings.DEVELOPMENT)

    return [healthy]


def _one(mails: store.Store, mail_id: str) -> wire.Entry:
    entry = mails.find(mail_id)
    if entry is None:
        raise exceptions.NotFoundException("there is no such mail")
    return entry


def _html(content: str, policy: str) -> Text:
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return litestar.Response(content, media_type="text/html", headers=headers)
