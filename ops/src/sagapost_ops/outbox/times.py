"""Moments and spans of time as a person writes and reads them; pure."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_SPAN: Final = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?", re.ASCII)
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400


def moment(text: str, now: datetime) -> datetime:
    """Read a span before `now` (2h, 30m, 1d12h) or an ISO timestamp; one without a zone is UTC.

    Raises:
        ValueError: it is neither.

    """
    spanned = _SPAN.fullmatch(text)
    if text and spanned:
        days, hours, minutes, seconds = (int(part or 0) for part in spanned.groups())
        return now - timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    try:
        read = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is neither a span like 2h, 30m or 1d12h nor a time like 2026-11-22T10:30:00Z") from exc
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def is_span(text: str) -> bool:
    """Return whether `moment` reads this as a span and not as a time."""
    return bool(text) and _SPAN.fullmatch(text) is not None


def span(seconds: float) -> str:
    """Write a span of time in the one unit that says most."""
    for unit_s, name in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def clock(at: datetime) -> str:
    """Write a moment to the second, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
