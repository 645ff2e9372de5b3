"""Plays one story before the eyes of whoever is at the terminal, and judges how it ended; it must not know which stories there are."""

import contextlib
import shlex
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from sagapost_ops import client, errors, screen, targets
from sagapost_ops.demo import poison, shop, stories
from sagapost_ops.saga import advice, resources, words

DEADLINE_S: Final = 60.0
MAILS_S: Final = 20.0


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a demo; `faults` says what did not come out as the story says, `movements` is None without a ledger to read.

    `dead_letter` is the one that the poison story brought back.
    """

    ok: bool
    story: str
    answer_ms: float
    saga: resources.Saga
    movements: tuple[shop.Movement, ...] | None
    mails: tuple[shop.MailSeen, ...]
    faults: tuple[str, ...]
    dead_letter: poison.Letter | None = None


def tell(console: screen.Screen, where: targets.Targets, name: str, told: stories.Story, port_offset: int) -> Demo:
    """Buy, do what the story says, watch it to its end, wait for the mails, and compare all of it with the story.

    Raises:
        FailedError: a request was not accepted.
        UnfitError: something does not answer.

    """
    console.paragraph(told.says, style="bold")
    console.line()
    dead: poison.Letter | None = None
    with client.Client(targets.need(where, "gateway_url")) as gateway, _fault(console, where, told) as mend:
        order, answer_ms = shop.check_out(gateway, told.payment_method, large=told.poisoned)
        _say(console, f"POST /api/checkout  →  202 in {answer_ms:.0f} ms: order {order.id}, {order.total_amount} {order.currency}")
        watch = _Watch(console, where, gateway, order)
        if told.poisoned:
            watch.look()
            dead = _bring_back(console, where, order, mend, port_offset)
        if told.cancelled == "charging":
            shop.wait_for_charge(where, order)
        elif told.cancelled == "done":
            watch.until(lambda saga: saga.done)
        if told.cancelled is not None:
            watch.look()
            console.line()
            _say(console, told.cancels)
            shop.cancel(gateway, order)
            _say(console, f"POST /api/orders/{order.id}/cancel  →  accepted")
            console.line()
        saga = watch.until(lambda saga: saga.done)
    shop.until(lambda: {mail.template for mail in shop.mails(where, order)} >= set(told.mails), MAILS_S)
    mails, movements = shop.mails(where, order), shop.movements(where, order)
    faults = judge(told, order, saga, movements, mails)
    if dead is not None and poison.letter(port_offset, order.id) is not None:
        faults += (f"the message of order {order.id} is still dead, or again",)
    return Demo(
        ok=not faults, story=name, answer_ms=answer_ms, saga=saga, movements=movements, mails=mails, faults=faults, dead_letter=dead
    )


@contextlib.contextmanager
def _fault(console: screen.Screen, where: targets.Targets, told: stories.Story) -> Generator[Callable[[], None]]:
    if not told.poisoned:
        yield lambda: None
        return
    with poison.planted(where) as mend:
        _say(console, f"The fault: payment's database now refuses every amount above {poison.LIMIT:,}. The order is above that.")
        yield mend


def _bring_back(
    console: screen.Screen, where: targets.Targets, order: shop.Order, mend: Callable[[], None], port_offset: int
) -> poison.Letter:
    """Follow the order's message to the dead letters, look at it, mend the fault, replay it."""
    with console.status("waiting for the message to be given up"):
        poison.climb(where, order.saga_id, lambda sentence: _say(console, f"             {sentence}"))
    dead = poison.letter(port_offset, order.id)
    if dead is None:
        raise errors.FailedError(f"no dead letter of order {order.id} is there; see ./sagapost dlq groups{advice.option(port_offset)}")
    _say(console, f"             it failed {dead.attempt} times and is a dead letter now")
    console.line()
    for arguments in (("groups", poison.QUEUE), ("show", poison.QUEUE, "--id", dead.id)):
        _call(console, port_offset, *arguments)
    mend()
    _say(console, "The cause is a rule of the database, and somebody drops it: the fault is mended.")
    console.line()
    _call(console, port_offset, "replay", poison.QUEUE, "--id", dead.id, "--yes", "--reason", "the rule is gone")
    return dead


def _call(console: screen.Screen, port_offset: int, *arguments: str) -> None:
    line = f"$ ./sagapost dlq {shlex.join(arguments)}{advice.option(port_offset)}"
    console.line(line, style="bold")
    console.block(poison.dlq(port_offset, *arguments).rstrip())
    console.line()


def judge(
    told: stories.Story,
    order: shop.Order,
    saga: resources.Saga,
    movements: Sequence[shop.Movement] | None,
    mails: Sequence[shop.MailSeen],
) -> tuple[str, ...]:
    """Name, in one sentence each, what is not as the story says."""
    faults: list[str] = []
    charged = order.total_amount if "charge" in told.moved else Decimal(0)
    refunded = order.total_amount if "refund" in told.moved else Decimal(0)
    if saga.state != told.state:
        faults.append(f"the saga should be {told.state} and is {saga.state}")
    if (saga.captured, saga.refunded) != (charged, refunded):
        faults.append(f"the saga should know of {charged} captured and {refunded} refunded; it has {saga.captured} and {saga.refunded}")
    if movements is not None and [(line.kind, line.amount) for line in movements] != [(kind, order.total_amount) for kind in told.moved]:
        lines = ", ".join(f"{line.kind} {line.amount}" for line in movements) or "nothing"
        faults.append(f"the provider's ledger should have {', '.join(told.moved) or 'nothing'} and has {lines}")
    if sorted(mail.template for mail in mails) != sorted(told.mails):
        names = ", ".join(mail.template for mail in mails) or "none"
        faults.append(f"the customer should have got these mails: {', '.join(told.mails)}; there are: {names}")
    return tuple(faults)


def show_end(console: screen.Screen, told: stories.Story, demo: Demo, mailbox: str, where: str) -> None:
    """Print the money, the mails, and why all this is safe; `where` is the option with which commands find the stack."""
    saga = demo.saga
    kept = saga.captured - saga.refunded
    console.line()
    _say(console, f"The saga: {words.state(saga.state)}; {saga.captured} captured, {saga.refunded} refunded, {kept} {saga.currency} kept.")
    if demo.movements is not None:
        net = sum((line.amount if line.kind == "charge" else -line.amount for line in demo.movements), Decimal("0.00"))
        kinds = Counter(line.kind for line in demo.movements)
        lines = " and ".join(f"{number} {kind}{'' if number == 1 else 's'}" for kind, number in kinds.items())
        _say(console, f"The provider's own ledger: {lines or 'no movement'}, net {net} {saga.currency}.")
    console.line()
    for mail in demo.mails:
        for line in mail.text.strip().splitlines():
            console.line(screen.Styled("  │ ", "cyan"), line)
        console.line()
    if told.why and demo.ok:
        console.paragraph(told.why)
        console.line()
    _say(console, f"All mails: {mailbox}; the saga again: ./sagapost saga show {saga.order_id}{where}")


class _Watch:
    """Shows what happens to one order, once each: rows of its saga's history, and money at the provider."""

    def __init__(self, console: screen.Screen, where: targets.Targets, gateway: client.Client, order: shop.Order) -> None:
        self._console = console
        self._where = where
        self._gateway = gateway
        self._order = order
        self._rows = 0
        self._lines = 0

    def until(self, is_over: Callable[[resources.Saga], bool]) -> resources.Saga:
        """Look until it is over, or the time is, and give the saga as it was then."""
        deadline = time.monotonic() + DEADLINE_S
        with self._console.status("waiting for the next step"):
            while not is_over(saga := self.look()) and time.monotonic() < deadline:
                time.sleep(shop.POLL_S)
        return saga

    def look(self) -> resources.Saga:
        """Show what is new, in the order in which it happened."""
        saga = shop.saga(self._gateway, self._order)
        movements = shop.movements(self._where, self._order) or ()
        news = [(row.at, _row(row)) for row in saga.history if row.seq > self._rows]
        news += [(line.at, _line(line)) for line in movements[self._lines :]]
        self._rows, self._lines = saga.version, len(movements)
        for at, said in sorted(news, key=lambda new: new[0]):
            after = f"  {words.since((at - self._order.created_at).total_seconds()):>9}  "
            self._console.line(screen.Styled(after, "dim"), *said)
        return saga


def _row(row: resources.History) -> tuple[screen.Part, ...]:
    state = screen.Styled(f"{row.to if row.to != row.before else '':14}", "bold")
    return f"{row.event:17} ", state, screen.Styled(words.happened(row), "dim")


def _line(line: shop.Movement) -> tuple[screen.Part, ...]:
    verb = "charged" if line.kind == "charge" else "refunded"
    return (screen.Styled(f"the provider {verb} {line.amount} {line.currency}", "yellow"),)


def _say(console: screen.Screen, sentence: str) -> None:
    console.line(sentence)
