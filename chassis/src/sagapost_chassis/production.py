"""What production refuses, as rules over one value that give reasons and never the value; it must not know any variable's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

Rule = Callable[[str], list[str]]

MIN_SECRET: Final = 16
_MIN_DISTINCT: Final = 6
# those of `./sagapost up` and compose.yaml, and what servers come with; a test compares the list with both
DEFAULTS: Final = frozenset(
    {
        *("ecommerce123", "guest", "postgres", "order_password", "payment_password"),
        *("order-password", "payment-password", "email-password", "relay-order-password", "relay-payment-password"),
        *("order_service_password", "order_relay_password", "payment_service_password", "payment_relay_password"),
    }
)
_EVERYBODYS: Final = ("password", "passwort", "changeme", "change-me", "secret", "example", "sagapost", "123456", "qwerty", "abcdef")
_VERIFYING: Final = frozenset({"verify-ca", "verify-full"})


def secret(text: str) -> list[str]:
    """Refuse a default, a short or a trivial secret."""
    if text in DEFAULTS:
        return ["its password is the development default; choose one: openssl rand -hex 24"]
    if len(text) < MIN_SECRET:
        return [f"its password has fewer than {MIN_SECRET} characters; choose one: openssl rand -hex 24"]
    if len(set(text)) < _MIN_DISTINCT or any(word in text.lower() for word in _EVERYBODYS):
        return ["its password can be guessed; choose one: openssl rand -hex 24"]
    return []


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
