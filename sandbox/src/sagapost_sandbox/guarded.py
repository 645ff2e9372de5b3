"""The settings that both HTTP servers of the sandbox have in common; it must not know what they serve."""

from sagapost_chassis import settings, sites


class Settings(settings.Common, frozen=True, kw_only=True):
    """`allowed_hosts`: names that are answered beside those of loopback, see sites.guarding."""

    allowed_hosts: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no list of host names."""
        super().__post_init__()
        self.hosts()

    def hosts(self) -> frozenset[str]:
        """Return the names under which it is called, beside those of loopback."""
        return sites.names(self.allowed_hosts)
