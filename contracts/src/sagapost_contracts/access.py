"""Who may call the API: scopes, the look of a key, and the digest that is kept of it; it must not know where keys are stored."""

import hashlib
import re
import secrets
import string
from typing import Final

CHECKOUT_WRITE: Final = "checkout:write"
CHECKOUT_READ: Final = "checkout:read"
OPS_READ: Final = "ops:read"
OPS_WRITE: Final = "ops:write"
SCOPES: Final = (CHECKOUT_WRITE, CHECKOUT_READ, OPS_READ, OPS_WRITE)

DEMO: Final = "demo"  # whose the calls without a key are, in development
ENVIRONMENTS: Final = ("development", "production")
CLIENT_NAME: Final = re.compile(r"\A[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")

_ALPHABET: Final = string.ascii_letters + string.digits
_LENGTH: Final = 32  # of 62 characters: 190 bits
_KEY: Final = re.compile(r"\Asp_(development|production)_[A-Za-z0-9]{32}\Z")


def new_key(env: str) -> str:
    """Make a key for an environment."""
    return f"sp_{env}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def env_of(key: str) -> str | None:
    """Tell which environment a key is for; None when it does not look like a key."""
    found = _KEY.match(key)
    return found.group(1) if found else None


def digest(key: str) -> bytes:
    """Give the SHA-256 of a key, the only thing that is kept of it.

    A plain digest is enough for 190 random bits: there is nothing to try. Nor does comparing digests tell by its time
    anything about a key, for nobody can choose a key by its digest.
    """
    return hashlib.sha256(key.encode("ascii")).digest()
