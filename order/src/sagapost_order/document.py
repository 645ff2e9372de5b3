"""Writes the transition table as a page's table, so that the page cannot say something else; it must not know any file."""

from typing import Final

from sagapost_order import states, transitions
from sagapost_order.rules import Rule

_EVENTS: Final = (*states.EVENTS, states.CANCEL_REQUESTED, states.RECEIPT_ASKED, states.DEADLINE, *states.OPERATOR)


def table() -> str:
    """Give the table in Markdown: a row for each event, a column for each state; `=` keeps the state, `ign` only writes history."""
    head = ["| event | " + " | ".join(states.STATES) + " |", "| --- |" + " --- |" * len(states.STATES)]
    rows = [f"| {event} | " + " | ".join(_cell(state, event) for state in states.STATES) + " |" for event in _EVENTS]
    return "\n".join((*head, *rows)) + "\n"


def _cell(state: str, event: str) -> str:
    rules = transitions.TABLE.get((state, event), ())
    return "<br>".join(_line(rule) for rule in rules) or "-"


def _line(rule: Rule) -> str:
    when = " and ".join(guard.__name__.replace("_", " ") for guard in rule.when)
    then = "nothing" if rule.unheard else "ign" if rule.ignored else f"**{rule.to}**" if rule.to else "="
    emits = "".join(f" + {name}" for name in rule.emits)
    return f"{when}: {then}{emits}" if when else f"{then}{emits}"
