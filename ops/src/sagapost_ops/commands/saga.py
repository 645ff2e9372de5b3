"""`saga`: find what is stuck, see what happened to a checkout, and put it right."""

import contextlib
from collections.abc import Generator, Iterator
from datetime import UTC, datetime

import msgspec
import rich_click as click

from sagapost_ops import client, errors, screen
from sagapost_ops.commands import options, saga_actions
from sagapost_ops.saga import advice, calls, pages, resources, stream, words


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What `list` found, each saga as the gateway wrote it; `more`: there are others."""

    sagas: list[msgspec.Raw]
    more: bool


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What `history` found."""

    saga_id: str
    order_id: int
    history: tuple[resources.History, ...]


@click.group(
    cls=click.RichGroup,
    help="""See where checkouts stand, what happened to each, and put right what waits for a person.

    Each checkout is a saga: it ends notified (paid, receipt sent) or compensated (cancelled, no money kept). Deadlines move it on
    by themselves. When tries do not help it is parked, in notify_failed or compensation_failed: it is still tried now and then,
    and `attention` says why it calls for you. What you do needs a reason; the saga's history keeps it, with your name.

    Name a saga by its order's number or by its own id. Where the gateway asks for an API key, set SAGAPOST_API_KEY to one with ops:read
    and, to act, ops:write.

    \b
      ./sagapost saga list --attention      # which call for a person?
      ./sagapost saga list --stuck          # which are not moving?
      ./sagapost saga show 1042             # what happened, what to do
      ./sagapost saga show 1042 --watch     # follow it until it is done
      ./sagapost saga retry 1042 --reason "mail server is back"
    """,
)
def command() -> None:
    """Group the seven."""


@command.command(
    name="list",
    help=f"""List sagas, the newest order first. Exit code 3 when there is none.

    --stuck: nothing will move it in time. Its deadline passed more than 30 s ago, or it has been paid or compensating for more than
    15 minutes, or it is parked. --attention: something happened that a person should look at; also of sagas that are done.

    The states are
    {", ".join(words.STATES)}.

    \b
    ./sagapost saga list
    ./sagapost saga list --state notify_failed
    ./sagapost saga list --attention --json | jq '.sagas[].order_id'
    """,
)
@click.option("--state", type=click.Choice(tuple(words.STATES)), metavar="STATE", help="Only sagas in this state.")
@click.option("--stuck", is_flag=True, help="Only those that nothing will move in time.")
@click.option("--attention", is_flag=True, help="Only those that call for a person.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N", help="At most so many.")
@options.port_offset
@options.as_json
def show_list(*, state: str | None, stuck: bool, attention: bool, limit: int, port_offset: int, as_json: bool) -> None:
    """Read and print."""
    filters = {name: "true" for name, wanted in (("stuck", stuck), ("attention", attention)) if wanted}
    filters |= {"state": state} if state else {}
    with client.Client(calls.gateway_url(port_offset)) as gateway:
        found, more = calls.listed(gateway, filters, limit)
    if as_json:
        screen.json(Listing(sagas=found, more=more))
    if not found:
        raise errors.NothingMatchedError("no saga matches" if filters else "there are no sagas yet; make one with: ./sagapost demo")
    if not as_json:
        shown = [calls.decoded(bytes(one), resources.Listed) for one in found]
        pages.show_list(screen.out(), shown, datetime.now(UTC), more=more, option=advice.option(port_offset))


@command.command(
    name="show",
    help="""Show one saga: where it stands, its three steps, what happened when and by whom, and what you can do.

    With --watch each row is printed when it is written, until the saga is done; Ctrl-C stops watching and changes nothing.

    With --json it is the document of GET /api/ops/sagas/{id}; with --watch as well, each row of the history on a line of its own and
    then the document on one line.

    \b
    ./sagapost saga show 1042
    ./sagapost saga show 0193b1c2-7d4e-7a10-9f0e-5f2f6c1d8a11 --watch
    ./sagapost saga show 1042 --json | jq .steps
    """,
)
@saga_actions.which
@click.option("--watch", is_flag=True, help="Follow it until it is done.")
@options.port_offset
@options.as_json
def show_saga(*, name: str, watch: bool, port_offset: int, as_json: bool) -> None:
    """Read and print, once or as it goes on."""
    url = calls.gateway_url(port_offset)
    if watch:
        try:
            _watch(url, name, option=advice.option(port_offset), as_json=as_json)
        except KeyboardInterrupt:
            if not as_json:
                screen.out().spaced("Stopped watching; nothing was changed.")
        return
    with client.Client(url) as gateway, _nothing(as_json=as_json):
        document = calls.read(gateway, calls.find(gateway, name))
    if as_json:
        screen.json(msgspec.Raw(document))
        return
    pages.show_saga(screen.out(), calls.decoded(document, resources.Saga), datetime.now(UTC), option=advice.option(port_offset))


@command.command(
    name="history",
    help="""Show everything that happened to one saga, row by row, with the reasons that were given.

    \b
    ./sagapost saga history 1042
    ./sagapost saga history 1042 --json | jq -r '.history[].reason'
    """,
)
@saga_actions.which
@options.port_offset
@options.as_json
def show_history(*, name: str, port_offset: int, as_json: bool) -> None:
    """Read to the end and print."""
    url = calls.gateway_url(port_offset)
    with client.Client(url) as gateway, _nothing(as_json=as_json):
        found = calls.decoded(calls.read(gateway, calls.find(gateway, name)), resources.Saga)
    rows = (*_older(url, found), *found.history)
    if as_json:
        screen.json(Told(saga_id=found.saga_id, order_id=found.order_id, history=rows))
        return
    console = screen.out()
    pages.show_heading(console)
    for row in rows:
        pages.show_row(console, found.created_at, row)


@contextlib.contextmanager
def _nothing(*, as_json: bool) -> Generator[None]:
    """Print `null` for what is not there: a script always gets one JSON document."""
    try:
        yield
    except errors.NothingMatchedError:
        if as_json:
            screen.json(None)
        raise


def _watch(url: str, name: str, *, option: str, as_json: bool) -> None:
    """Print the history as it is written, then the end."""
    console = screen.quiet() if as_json else screen.out()
    with client.Client(url) as gateway:
        found = calls.decoded(calls.read(gateway, calls.find(gateway, name)), resources.Saga)
    if not found.done:
        pages.show_head(console, found, datetime.now(UTC))
    pages.show_heading(console)
    with console.status("waiting for what happens next; Ctrl-C stops watching"):
        for row in stream.follow(url, found.saga_id, 0, lambda: _lost(console)):
            if as_json:
                screen.json_line(row)
            pages.show_row(console, found.created_at, row)
            if row.to in words.PARKED and row.to != row.before and row.seq >= found.version:
                _call_for_help(console, url, found.saga_id, option)
    with client.Client(url) as gateway:
        document = calls.read(gateway, found.saga_id)
    if as_json:
        screen.json_line(msgspec.Raw(document))
        return
    console.line()
    now = datetime.now(UTC)
    pages.show_head(console, calls.decoded(document, resources.Saga), now)
    pages.show_advice(console, calls.decoded(document, resources.Saga), now, option=option)


def _call_for_help(console: screen.Screen, url: str, saga_id: str, option: str) -> None:
    """Say what a person can do about a saga that has just been parked, or is."""
    with client.Client(url) as gateway:
        found = calls.decoded(calls.read(gateway, saga_id), resources.Saga)
    if found.state in words.PARKED:
        console.line()
        pages.show_advice(console, found, datetime.now(UTC), option=option)
        console.line()


def _older(url: str, found: resources.Saga) -> Iterator[resources.History]:
    """Give the rows that the document, which shows the newest thousand, has no room for."""
    first = found.history[0].seq if found.history else found.version + 1
    if first > 1:
        for row in stream.follow(url, found.saga_id, 0, lambda: None):
            if row.seq >= first:
                return
            yield row


def _lost(console: screen.Screen) -> None:
    console.line("the connection broke; trying again from the last row", style="yellow")


for action in saga_actions.COMMANDS:
    command.add_command(action)
