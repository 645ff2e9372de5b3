"""Which addresses only this machine can reach; it must not know any setting."""

import ipaddress
import socket


def beyond(host: str) -> list[str]:
    """Return the addresses of a host name or address that other machines may reach; none when all of them are loopback.

    Raises:
        OSError: the name has no address.

    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as exc:
        raise OSError(f"{host!r} is no host name") from exc
    addresses = dict.fromkeys(str(where[0]) for *_, where in found)
    return [address for address in addresses if not is_loopback(address)]


def is_loopback(address: str) -> bool:
    """Return whether a numeric address is in 127.0.0.0/8, is ::1, or is such an IPv4 address mapped into IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])  # behind % stands an interface
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
