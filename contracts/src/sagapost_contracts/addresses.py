"""Which e-mail addresses are accepted, the same for every service: one plain ASCII address; it must not know what is sent there."""

import re
from typing import Final

# RFC 5321, 4.5.3.1: an address has at most 254 octets without its brackets, its local part 64; RFC 1035: a label has 63.
# Local part: the atoms of RFC 5322, 3.2.3. The last label: letters, or an internationalised one in its ASCII form (RFC 5890).
_MAX_ADDRESS: Final = 254
_MAX_LOCAL: Final = 64
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_TOP: Final = r"(?:[A-Za-z]{2,63}|[Xx][Nn]--[A-Za-z0-9-]{0,58}[A-Za-z0-9])"
_ADDRESS: Final = re.compile(rf"\A{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+{_TOP}\Z")
# An address, or a longer word that ends with one, anywhere in a text; `%40` is how a URL writes the sign.
_HELD: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-](?:@|%(?:25){0,8}40)(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z0-9-]{2}")


def is_email_address(text: str) -> bool:
    """Return whether this is one plain address `local@domain.tld`, without quotes, brackets, control or invisible characters."""
    return len(text) <= _MAX_ADDRESS and len(text.partition("@")[0]) <= _MAX_LOCAL and _ADDRESS.match(text) is not None


def holds_email_address(text: str) -> bool:
    """Return whether an address stands anywhere in an ASCII text."""
    return _HELD.search(text) is not None
