"""What a person can do about a saga, as sentences with the exact commands; pure, it must not know how they are printed."""

from datetime import datetime
from typing import Final

import msgspec

from sagapost_ops.saga import resources

LATE_S: Final = 30.0  # a deadline that passed longer ago is applied by nobody


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence, and the command that does it if there is one; it must be completed where it says `…`."""

    says: str
    command: str | None = None


_RETRY: Final = {
    "created": "Ask payment once more; it charges no order twice:",
    "paid": "Ask for the receipt once more:",
    "compensating": "Ask payment once more to give the money back; it refunds no order twice:",
    "notify_failed": "Mend the mail server or the address first, then have the receipt tried again:",
    "compensation_failed": "Mend what stands in the way at the provider, then have the refund tried again:",
}
_WAIVE: Final = "Or do without the receipt; the order stands:"
_COMPENSATE: Final = "Or give the order up: it is cancelled and the money goes back:"
_MARK: Final = "Or, when the customer got the money outside the provider's refund, say so with the proof of it:"
_OTHERS: Final = {
    "created": (("compensate", _COMPENSATE),),
    "paid": (("waive-notify", _WAIVE), ("compensate", _COMPENSATE)),
    "notify_failed": (("waive-notify", _WAIVE), ("compensate", _COMPENSATE)),
    "compensating": (("mark-refunded", _MARK),),
    "compensation_failed": (("mark-refunded", _MARK),),
}
_LOOK: Final = {
    "payment_silent": "Is payment up? Compare the order with the provider's books:",
    "late_capture": "The refund is under way or done; compare with the provider's books:",
    "amount_mismatch": "Compare the order with the provider's books:",
    "partial_refund": "Compare the order with the provider's books:",
    "payment_contradicts_capture": "Compare the order with the provider's books:",
    "unexpected_refund_failure": "Compare the order with the provider's books:",
}


def option(port_offset: int) -> str:
    """Give what each command needs to find the stack, with a space before it; nothing for the usual one."""
    return f" --port-offset {port_offset}" if port_offset else ""


def advise(found: resources.Saga, now: datetime, where: str = "") -> list[Advice]:
    """Say what can be done, the likeliest first; `where` is the `option` of the stack."""
    said: list[Advice] = []
    if found.deadline_at is not None and (now - found.deadline_at).total_seconds() > LATE_S:
        said.append(Advice(says="Nobody applies its deadline; is the order service up?", command=f"./sagapost status{where}"))
    if found.attention == "cancellation_failed":
        said.append(Advice(says="Tell the customer yourself that the order was cancelled; nothing tries again."))
    elif found.attention in _LOOK:
        said.append(Advice(says=_LOOK[found.attention], command=f"./sagapost verify{where}"))
    if found.state not in _RETRY:
        if not found.done:
            said.append(Advice(says="Nothing to do: the cancellation mail is on its way."))
        return said or [Advice(says="Nothing to do: it is done.")]
    if found.state not in {"notify_failed", "compensation_failed"} and not said:
        said.append(Advice(says="Nothing to do: it goes on by itself. If it must not wait:"))
    said.append(Advice(says=_RETRY[found.state], command=_command("retry", found, where)))
    said.extend(Advice(says=says, command=_command(action, found, where)) for action, says in _OTHERS[found.state])
    return said


def _command(action: str, found: resources.Saga, where: str) -> str:
    reference = ' --reference "…"' if action == "mark-refunded" else ""
    return f'./sagapost saga {action} {found.order_id} --reason "…"{reference}{where}'
