"""What each payment token of the sandbox does; the only place that knows them."""

from typing import Final

import msgspec

LATE_S: Final = 30.0
SLOW_S: Final = 6.0
HANG_S: Final = 600.0
FLAKY_FAILURES: Final = 2
# Opening of an answer that no JSON decoder reads: cut off, and not UTF-8.
POISON: Final = b'{"charge_id": "ch_\xff\xfe'


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """One way to behave; the fields are tried in this order."""

    hangs: bool = False
    poison: bool = False
    failures_first: int = 0
    takes_s: float = 0.0
    declined: tuple[str, str] | None = None
    error_after_charge: bool = False
    answers_after_s: float = 0.0


TOKENS: Final = {
    "pm_card_ok": Token(),
    "pm_card_declined": Token(declined=("card_declined", "The card was declined.")),
    "pm_card_insufficient_funds": Token(declined=("insufficient_funds", "The card has insufficient funds.")),
    "pm_flaky": Token(failures_first=FLAKY_FAILURES),
    "pm_slow": Token(takes_s=SLOW_S),
    "pm_hang": Token(hangs=True),
    "pm_late": Token(answers_after_s=LATE_S),
    "pm_error_after_charge": Token(error_after_charge=True),
    "pm_poison": Token(poison=True),
}
