"""TLS as a client: a context that verifies, and one sentence for a certificate that does not; it must not know a protocol."""

import ssl

from sagapost_chassis import settings


def context(ca_file: str, variable: str) -> ssl.SSLContext:
    """Give a context that verifies chain and host name, by this CA alone or, for an empty path, by those of the system.

    Raises:
        settings.CannotStartError: the file cannot be read or holds no certificate; `variable` is the setting that names it.

    """
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as exc:  # ssl.SSLError is one, too
        raise settings.CannotStartError(f"{settings.PREFIX}{variable}: {ca_file} holds no usable certificate: {exc.strerror}") from exc


def fault(exc: BaseException, server: str) -> str | None:
    """Say in one sentence why a server's certificate was refused; None when `exc` was not caused by that."""
    found: BaseException | None = exc
    seen: set[int] = set()
    while found is not None and id(found) not in seen:  # aiormq raises errors whose causes lead back to themselves
        seen.add(id(found))
        if isinstance(found, ssl.SSLCertVerificationError):
            reason = found.verify_message.rstrip(".")
            return f"the certificate of the {server} is refused ({reason}); correct its CA file or its host name in the settings"
        found = found.__cause__ or found.__context__
    return None
