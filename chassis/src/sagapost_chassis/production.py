"""What production refuses, as rules over one value that give reasons and never the value; it must not know any variable's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

Rule = Callable[[str], list[str]]

MIN_SECRET: Final = 16
MIN_INTERNAL: Final = 32
CHOOSE: Final = "openssl rand -hex 24"
CHOOSE_INTERNAL: Final = "openssl rand -hex 32"
_MIN_DISTINCT: Final = 7  # of 16 random hexadecimal digits, fewer than 7 differ once in about 700 times
_MIN_NEW: Final = 0.75  # of the shortest length, that many characters are neither a repetition nor part of a run
_RUN: Final = 3  # characters in a row, each the one before, its successor or its predecessor
# those of `./sagapost up` and compose.yaml, and what servers come with; a test compares the list with both
DEFAULTS: Final = frozenset(
    {
        *("ecommerce123", "guest", "postgres", "order_password", "payment_password"),
        *("order-password", "payment-password", "email-password", "relay-order-password", "relay-payment-password"),
        *("order_service_password", "order_relay_password", "payment_service_password", "payment_relay_password"),
        *("development-internal-secret-of-compose", "development-cookie"),
    }
)
_EVERYBODYS: Final = (
    *("password", "passwort", "passwd", "changeme", "change-me", "secret", "example", "sagapost", "admin", "letmein", "welcome"),
    *("qwerty", "asdfgh", "zxcvbn", "1q2w3e"),
)
_LOOKALIKES: Final = str.maketrans("013457@$!|", "oieastasii")
_VERIFYING: Final = frozenset({"verify-ca", "verify-full"})


def secret(text: str) -> list[str]:
    """Refuse a password that is or contains a default, is short, or can be guessed."""
    return _weak(text, "its password", MIN_SECRET, CHOOSE)


def internal(text: str) -> list[str]:
    """Refuse a secret between our services by the same rules; it is longer, for no person types it."""
    return _weak(text, "it", MIN_INTERNAL, CHOOSE_INTERNAL)


def cookie(text: str) -> list[str]:
    """Refuse an Erlang cookie by the same rules: whoever knows it commands the broker's nodes."""
    return _weak(text, "it", MIN_SECRET, CHOOSE)


def _weak(text: str, what: str, shortest: int, choose: str) -> list[str]:
    lowered = text.lower()
    if any(default in lowered for default in DEFAULTS):
        is_one = lowered in DEFAULTS
        return [f"{what} {'is the' if is_one else 'contains a'} development default; choose one: {choose}"]
    if len(text) < shortest:
        return [f"{what} has fewer than {shortest} characters; choose one: {choose}"]
    plain = lowered.translate(_LOOKALIKES)
    if (
        any(word in lowered or word in plain for word in _EVERYBODYS)
        or len(set(text)) < _MIN_DISTINCT
        or _news(lowered) < shortest * _MIN_NEW
    ):
        return [f"{what} can be guessed; choose one: {choose}"]
    return []


def _news(text: str) -> int:
    """Return how many characters say something new: none inside a run (aaaa, 1234, fedc), none of a part that stood before."""
    news = at = 0
    while at < len(text):
        known = next((size for size in range(len(text) - at, _RUN - 1, -1) if text[at : at + size] in text[:at]), 0)
        at += max(known, _run(text, at), 1)
        news += 1
    return news


def _run(text: str, at: int) -> int:
    """Return the length of the run that begins here; 0 when there is none."""
    for step in (-1, 0, 1):
        size = 1
        while at + size < len(text) and ord(text[at + size]) - ord(text[at + size - 1]) == step:
            size += 1
        if size >= _RUN:
            return size
    return 0


def database(dsn: str) -> list[str]:
    """Refuse a PostgreSQL connection without verified TLS, or with a weak password; a client certificate may stand for the password."""
    try:
        parts = urlsplit(dsn)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"postgresql", "postgres"}:
        return ["it is no URL of PostgreSQL: postgresql://user:password@host/database?sslmode=verify-full&sslrootcert=/path"]
    query = parse_qs(parts.query, keep_blank_values=True)
    faults: list[str] = []
    # ssl is another word for a weaker sslmode, and the last of several counts
    if "ssl" in query or not query.get("sslmode") or not _VERIFYING.issuperset(query["sslmode"]):
        faults.append(
            "the connection is not protected by verified TLS; add sslmode=verify-full, and sslrootcert=/path for a CA of your own"
        )
    for path in query.get("sslrootcert", ()):
        faults += _ca(path, "sslrootcert")
    passwords = [*query.get("password", ()), *([unquote(parts.password)] if parts.password else ())]
    if not passwords and not {"sslcert", "passfile"} & query.keys():
        faults.append("it has no password; add one, or sslcert and sslkey")
    for password in passwords:
        faults += secret(password)
    return faults


def broker(url: str) -> list[str]:
    """Refuse an AMQP connection without verified TLS, or with a weak password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ["it is no URL: amqps://user:password@host/"]
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    faults: list[str] = []
    if parts.scheme != "amqps":
        faults.append("the connection is not encrypted; use amqps://, with ?cafile=/path for a CA of your own")
    if query.get("no_verify_ssl", "0") != "0":
        faults.append("no_verify_ssl turns the check of the broker's certificate off; remove it")
    faults += _ca(query.get("cafile", "system"), "cafile")
    return faults + secret(unquote(parts.password or "guest"))


def https(url: str) -> list[str]:
    """Refuse an HTTP address without TLS."""
    return [] if url.lower().startswith("https://") else ["the connection is not encrypted; use https://"]


def _ca(path: str, name: str) -> list[str]:
    if path == "system":
        return []
    try:
        with Path(path).open("rb"):
            return []
    except OSError as exc:
        return [f"the file of its {name} cannot be read: {exc.strerror}"]
