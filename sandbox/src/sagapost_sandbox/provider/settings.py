"""The provider's settings from the environment; knows no default but development's."""

from sagapost_sandbox import guarded


class Settings(guarded.Settings, frozen=True, kw_only=True):
    """`provider_ledger` is the file of the money that moved; `provider_delay_s` what every call takes."""

    port: int = 8004
    provider_ledger: str
    provider_delay_s: float = 0.0

    def weaknesses(self) -> list[str]:
        """Name itself."""
        return ["the sandbox's payment provider moves no money; it is for development and tests only"]
