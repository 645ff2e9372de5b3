"""The provider's settings from the environment; knows no default but development's."""

from sagapost_chassis import settings, sites


class Settings(settings.Common, frozen=True, kw_only=True):
    """`provider_ledger` is the file of the money that moved; `provider_delay_s` what every call takes.

    `allowed_hosts`: names that are answered beside those of loopback, see sites.guarding.
    """

    port: int = 8004
    provider_ledger: str
    provider_delay_s: float = 0.0
    allowed_hosts: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no list of host names."""
        super().__post_init__()
        self.hosts()

    def hosts(self) -> frozenset[str]:
        """Return the names under which it is called, beside those of loopback."""
        return sites.names(self.allowed_hosts)

    def weaknesses(self) -> list[str]:
        """Name itself."""
        return ["the sandbox's payment provider moves no money; it is for development and tests only"]
