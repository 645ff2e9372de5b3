"""What the gateway reads from its environment; it knows one upstream, the order service."""

import re
from typing import Final

from sagapost_chassis import settings, sites

_ORIGIN: Final = re.compile(r"\Ahttps?://[^/?#@\s]+/?\Z")
_SITE: Final = re.compile(r"\Ahttps?://[a-z0-9.-]+(?::[0-9]{1,5})?\Z")
_LINK: Final = re.compile(r"\Ahttps?://[^\s\"'<>]+\Z")


class Settings(settings.Internal, frozen=True, kw_only=True):
    """`page_port` 0 means no second port; `deadline_s` bounds one call to the order service; `mailbox_url` is a link on the page.

    `max_connections` to the order service serve calls, `max_waiting` others serve those who wait for news of an order; `max_queued`
    calls wait shortly for one. One client has at most `max_waiting_per_client` of those who wait (0: a tenth), and a stream ends after
    `stream_max_s`. `breaker_failures` of a client in a row open its breaker. `max_open` connections may clients hold on each port; one
    that is idle is closed after `keep_alive_s`, longer than proxies keep theirs.
    `cors_origins` names, separated by spaces or commas, the sites whose pages may use the API, `allowed_hosts` the hosts that are answered
    beside loopback ones; production without any answers every host. `development_hosts` are answered in development as well: a container's
    name, which would shut out everybody else in production.
    """

    port: int = 9000
    page_port: int = 3000
    order_url: str = "http://127.0.0.1:8001"
    deadline_s: float = 5.0
    max_connections: int = 32
    max_waiting: int = 500
    max_waiting_per_client: int = 0
    stream_max_s: float = 900.0
    keep_alive_s: float = 75.0
    max_queued: int = 32
    breaker_failures: int = 5
    max_open: int = 4096
    cors_origins: str = ""
    allowed_hosts: str = ""
    development_hosts: str = ""
    mailbox_url: str = ""

    def __post_init__(self) -> None:
        """Refuse what could only fail later, at the first request."""
        super().__post_init__()
        if not _ORIGIN.match(self.order_url):
            raise ValueError("SAGAPOST_ORDER_URL must look like http://host:port")
        if self.mailbox_url and not _LINK.match(self.mailbox_url):
            raise ValueError("SAGAPOST_MAILBOX_URL must be an http or https URL")
        self._check_numbers()
        self.hosts()
        for origin in self.origins():
            if not _SITE.match(origin):
                raise ValueError("SAGAPOST_CORS_ORIGINS must name origins like https://shop.example, without a path, and not *")

    def _check_numbers(self) -> None:
        if not 0 < self.deadline_s <= 60:
            raise ValueError("SAGAPOST_DEADLINE_S must be more than 0 and at most 60 seconds")
        for name in ("max_connections", "max_waiting", "max_queued", "breaker_failures", "max_open"):
            if getattr(self, name) < 1:
                raise ValueError(f"SAGAPOST_{name.upper()} must be at least 1")
        if not 0 <= self.max_waiting_per_client <= self.max_waiting:
            raise ValueError("SAGAPOST_MAX_WAITING_PER_CLIENT must be 0 (a tenth) or at most SAGAPOST_MAX_WAITING")
        if not 1 <= self.stream_max_s <= 24 * 3600:
            raise ValueError("SAGAPOST_STREAM_MAX_S must be from 1 second to a day")
        if not 1 <= self.keep_alive_s <= 3600:
            raise ValueError("SAGAPOST_KEEP_ALIVE_S must be from 1 second to an hour")

    def origins(self) -> tuple[str, ...]:
        """Give the sites whose pages may use the API."""
        return tuple(self.cors_origins.replace(",", " ").split())

    def hosts(self) -> frozenset[str]:
        """Return the names under which the gateway is called, beside those of loopback."""
        found, more = sites.names(self.allowed_hosts), sites.names(self.development_hosts)
        return found | more if self.env == settings.DEVELOPMENT else found
