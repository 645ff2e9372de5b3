"""How an Idempotency-Key header is written: the one rule of gateway, order service and API document."""

import re
from typing import Final

from sagapost_contracts import addresses, cards

LENGTH_MAX: Final = 255
# Visible ASCII without the quote, the backslash and the comma: a comma is what a proxy joins repeated headers with.
CHARACTERS: Final = r"[!#-+\x2d-\x5b\x5d-~]"
SENTENCE: Final = (
    f"Send one Idempotency-Key of 1 to {LENGTH_MAX} visible ASCII characters, bare or in double quotes, without commas and backslashes; "
    "no e-mail address and no card number may stand in it, because keys are stored."
)

_KEY: Final = re.compile(rf'\A("?)({CHARACTERS}{{1,{LENGTH_MAX}}})\1\Z')


def bare(header: str) -> str | None:
    """Return the key without its quotes, so that both spellings are the same key; None when it cannot be one."""
    found = _KEY.match(header)
    if found is None or _is_private(found[2]):
        return None
    return found[2]


def _is_private(key: str) -> bool:
    return addresses.holds_email_address(key) or cards.holds_number_of_a_network(cards.ID.sub("x", key))
