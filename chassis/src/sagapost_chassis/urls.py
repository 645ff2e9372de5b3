"""URLs that hold passwords: which ones every library reads alike, and what of one may be shown; it must not know whose they are.

urllib, libpq and the AMQP client disagree about a `#`, `?`, `/` or `@` in a password, and name a part of it as the host or port that
they could not use. So such a URL is refused before any of them sees it.
"""

import re
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

ENCODE: Final = (
    "a special character in its user, password or parameters is written as %xx (# is %23, / is %2F, ? is %3F, @ is %40, % is %25)"
)
SCHEMES: Final = frozenset({"postgresql", "postgres", "amqp", "amqps", "http", "https"})
_HIGHEST_PORT: Final = 65535
_PLACE: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.%~-]*)(?::(\d{0,5}))?", re.ASCII)
_PLAIN: Final = re.compile(r"[!-\[\]-~]*")  # no blank, control or other character, which urllib may drop, and no backslash
_ESCAPED: Final = re.compile(r"%(?!00)[0-9A-Fa-f]{2}")
_WORD: Final = re.compile(r"(\w+)=([^\s'\\]*)", re.ASCII)
_SHOWN: Final = ("host", "port", "dbname")
PARAMETERS: Final = "its address has a parameter that is unknown or wrong"  # libpq's own words name what may be a piece of a password


def fault(url: str, *, words: bool = False) -> str:
    """Return why this URL could be read in two ways or not at all, without any part of it; empty when it is clear.

    `words`: libpq's other form, `host=… dbname=…`, will do.
    """
    if "://" not in url:
        return "" if words and _words(url) is not None else "cannot be read: it is no URL"
    return "" if _parts(url) is not None else f"cannot be read: {ENCODE}"


def shown(url: str) -> str:
    """Return scheme, host, port and path; no user, no password, no parameter, and of what is not clear nothing."""
    if "://" not in url:
        words = _words(url) or {}
        return " ".join(f"{name}={words[name]}" for name in _SHOWN if name in words) or "…"
    parts = _parts(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts else "…"


def _parts(url: str) -> SplitResult | None:
    if not _PLAIN.fullmatch(url) or "#" in url or "%" in _ESCAPED.sub("", url):
        return None
    try:
        parts = urlsplit(url)
        unquote(url, errors="strict")
    except ValueError:
        return None
    account, _, places = parts.netloc.rpartition("@")
    ports = [_PLACE.fullmatch(place) for place in places.split(",")]
    is_clear = (
        parts.scheme in SCHEMES
        and "@" not in f"{account}{parts.path}{parts.query}"
        and all(found and int(found[1] or 0) <= _HIGHEST_PORT for found in ports)
    )
    return parts if is_clear else None


def _words(text: str) -> dict[str, str] | None:
    """Read libpq's other form, `host=… dbname=…`; one with quotes is libpq's to read, and not shown."""
    if "'" in text or "\\" in text:
        return {} if "=" in text else None
    found = [_WORD.fullmatch(one) for one in text.split()]
    return {one[1]: one[2] for one in found if one} if found and all(found) else None
