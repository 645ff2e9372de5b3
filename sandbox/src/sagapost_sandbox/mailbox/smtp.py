"""The mailbox over SMTP: phases, delays and refusals; knows nothing of how mails are kept or shown."""

import asyncio
import contextlib
import ssl
import types
from collections.abc import Callable
from typing import Final

from aiosmtpd import smtp

from sagapost_chassis import telemetry
from sagapost_sandbox.mailbox import store, wire

HOSTNAME: Final = "mailbox.sagapost.example"
MAX_MAIL_BYTES: Final = 5 * 1024 * 1024
IDLE_S: Final = 900
HANG_S: Final = 600
OK: Final = "250 OK"
ENOUGH: Final = "421 4.7.0 no more mails in this conversation"
GAVE_UP: Final = "421 4.3.0 nobody was served"


class Conduct:
    """How the server behaves at the moment; `stop` ends every wait at once."""

    def __init__(self, delay_s: float, stop: asyncio.Event) -> None:
        self.behaviour = wire.Behaviour()
        self._delay_s = delay_s
        self._stop = stop

    async def at(self, phase: wire.Phase) -> str | None:
        """Do what is due at a phase: hang, refuse (the reply is returned), or nothing."""
        if self.behaviour.hang == phase:
            await self._pause(HANG_S)
            return GAVE_UP  # whoever waited that long, or whom the end of this process cuts off, has delivered nothing
        if self.behaviour.reject is not None and self.behaviour.reject_at == phase:
            return f"{self.behaviour.reject} refused, as the sandbox was told to"
        return None

    async def delay(self) -> None:
        """Take the time that accepting a mail takes."""
        await self._pause(self._delay_s if self.behaviour.delay_s is None else self.behaviour.delay_s)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)


class Session(smtp.SMTP):
    """One conversation; the two phases that aiosmtpd has no hook for."""

    def __init__(self, hooks: types.SimpleNamespace, conduct: Conduct, tls: ssl.SSLContext | None) -> None:
        super().__init__(
            hooks,
            hostname=HOSTNAME,
            ident="sandbox",
            data_size_limit=MAX_MAIL_BYTES,
            enable_SMTPUTF8=True,
            timeout=IDLE_S,
            loop=asyncio.get_running_loop(),
            tls_context=tls,
            require_starttls=tls is not None,
        )
        self._conduct = conduct
        self._taken = 0
        self._smtp_methods["DATA"] = self._data

    async def _handle_client(self) -> None:
        refusal = await self._conduct.at("connect")
        if refusal is not None:
            await self.push(refusal)
            self.hang_up()
            return
        await super()._handle_client()

    @smtp.syntax("DATA")
    async def _data(self, arg: str) -> None:
        refusal = await self._conduct.at("data")
        if refusal is not None:
            await self.push(refusal)
            return
        await super().smtp_DATA(arg)

    def takes_more(self) -> bool:
        """Return whether this conversation may bring one more mail, and count it."""
        self._taken += 1
        most = self._conduct.behaviour.mails_per_conversation
        return most is None or self._taken <= most

    def hang_up(self) -> None:
        """Close the connection without another word."""
        if self.transport is not None:
            self.transport.close()


def sessions(mails: store.Store, conduct: Conduct, tls: ssl.SSLContext | None = None) -> Callable[[], Session]:
    """Return what makes a session for each connection; `tls` is for STARTTLS, which is demanded then."""

    async def greet(server: smtp.SMTP, session: smtp.Session, _: smtp.Envelope, hostname: str) -> str:
        session.host_name = hostname
        return await conduct.at("helo") or f"250 {server.hostname}"

    async def greet_extended(_: smtp.SMTP, session: smtp.Session, __: smtp.Envelope, hostname: str, responses: list[str]) -> list[str]:
        session.host_name = hostname
        refusal = await conduct.at("helo")
        return responses if refusal is None else [refusal]

    async def begin(server: smtp.SMTP, _: smtp.Session, envelope: smtp.Envelope, address: str, options: list[str]) -> str:
        refusal = await conduct.at("mail")
        if isinstance(server, Session) and not server.takes_more():
            return ENOUGH
        if refusal is None:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return refusal or OK

    async def address_to(_: smtp.SMTP, __: smtp.Session, envelope: smtp.Envelope, address: str, options: list[str]) -> str:
        refusal = await conduct.at("rcpt")
        if refusal is None:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(options)
        return refusal or OK

    async def accept(server: smtp.SMTP, _: smtp.Session, envelope: smtp.Envelope) -> str:
        # Shielded: a client that leaves in the middle must not leave half of this behind.
        return await asyncio.shield(_accept(mails, conduct, server, envelope))

    hooks = types.SimpleNamespace(
        handle_HELO=greet, handle_EHLO=greet_extended, handle_MAIL=begin, handle_RCPT=address_to, handle_DATA=accept
    )
    return lambda: Session(hooks, conduct, tls)


async def _accept(mails: store.Store, conduct: Conduct, server: smtp.SMTP, envelope: smtp.Envelope) -> str:
    with telemetry.canonical("mail.handled", "smtp", "data") as line:
        await conduct.delay()
        refusal = await conduct.at("dot")
        if refusal is not None:
            line["outcome"] = "refused"
            return refusal
        try:
            kept = await mails.accept(envelope.original_content or b"", envelope.mail_from or "", envelope.rcpt_tos)
        except OSError as exc:
            line |= {"outcome": "not_kept", "reason": str(exc)}
            return "452 4.3.1 the mail could not be written"
        line["message_id"] = kept.message_id.partition("@")[0]  # the whole looks like an address, which no log may hold
        if conduct.behaviour.cut_after_dot and isinstance(server, Session):
            server.hang_up()
        return f"250 2.0.0 kept as {kept.id}"
