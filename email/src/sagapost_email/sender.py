"""Mails on the wire: builds MIME messages and hands them to the mail server over a few kept connections; knows no event."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.headerregistry import Address, BaseHeader, HeaderRegistry
from email.message import EmailMessage
from email.policy import SMTP
from typing import Final, Literal, Self

import aiosmtplib

from sagapost_chassis import privacy, settings, tls
from sagapost_email import domain, errors


class _Headers(HeaderRegistry):
    """The standard library's headers; it makes a class for each header of each mail, which was a tenth of this process's time."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, type[BaseHeader]] = {}

    def __getitem__(self, name: str) -> type[BaseHeader]:
        """Give the class of a header, the same for each mail."""
        if name not in self._made:
            self._made[name] = super().__getitem__(name)
        return self._made[name]


# Every line is plain ASCII (servers without 8BITMIME) and headers are never folded: a folded Message-ID is another one to some readers.
# 998 is the limit of RFC 5322, section 2.1.1.
_POLICY: Final = SMTP.clone(cte_type="7bit", max_line_length=998, header_factory=_Headers())
_RECENTLY_S: Final = 10


def compose(request: domain.Request, content: domain.Content, *, mail_from: str, traceparent: str | None) -> EmailMessage:
    """Build the message; the recipient has been checked before.

    Raises:
        errors.MailRefusedError: the recipient is not one plain address.

    """
    recipient = domain.require_address(request.recipient)
    message = EmailMessage(_POLICY)
    message["From"] = Address("Sagapost", addr_spec=mail_from)
    message["To"] = Address(addr_spec=recipient)
    message["Subject"] = content.subject
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = domain.smtp_message_id(request.template, request.saga_id, mail_from)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation replies, please
    message["X-Saga-Id"] = str(request.saga_id)
    if traceparent is not None:
        message["traceparent"] = traceparent
    message.set_content(content.text)
    message.add_alternative(content.html, subtype="html")
    return message


class Security(settings.Discreet, frozen=True, kw_only=True):
    """How a conversation is protected; `starttls` refuses a server that does not offer it, `off` takes what there is.

    An empty `ca_file` means the system's CAs.
    """

    mode: Literal["off", "starttls", "tls"] = "off"
    ca_file: str = ""
    user: str = ""
    password: settings.Secret = ""


class Sender:
    """At most `size` conversations with one mail server, kept open between mails; a command may take `timeout_s` seconds.

    Raises:
        settings.CannotStartError: the CA's file cannot be used.

    """

    def __init__(
        self, host: str, port: int, *, mail_from: str, size: int = 16, timeout_s: float = 30, security: Security | None = None
    ) -> None:
        self._host = host
        self._port = port
        self._mail_from = mail_from
        self._timeout_s = timeout_s
        self._security = security or Security()
        self._tls = None if self._security.mode == "off" else tls.context(self._security.ca_file, "SMTP_CA_FILE")
        self._slots = asyncio.Semaphore(size)
        self._idle: list[aiosmtplib.SMTP] = []
        self._answered_at = float("-inf")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle:
            smtp = self._idle.pop()
            with suppress(aiosmtplib.SMTPException, OSError):
                await smtp.quit(timeout=1)
            smtp.close()

    async def send(self, message: EmailMessage, recipient: str) -> None:
        """Hand over one mail; returns after the server has said that it has it.

        Raises:
            errors.MailDeferredError: the server said 4xx.
            errors.MailRefusedError: the server said 5xx.
            errors.MailServerUnavailableError: no conversation; whether it has the mail is unknown when it broke off late.

        """
        body = message.as_bytes()
        async with self._conversation() as smtp:
            try:
                await smtp.sendmail(self._mail_from, [recipient], body)
            except aiosmtplib.SMTPRecipientsRefused as exc:
                raise _refusal(exc.recipients[0]) from exc
            except aiosmtplib.SMTPResponseException as exc:
                raise _refusal(exc) from exc

    async def check(self) -> bool:
        """Tell whether the mail server answers."""
        if asyncio.get_running_loop().time() - self._answered_at > _RECENTLY_S:
            async with self._conversation():
                pass
        return True

    @asynccontextmanager
    async def _conversation(self) -> AsyncGenerator[aiosmtplib.SMTP]:
        """Borrow a connection that has just answered; it goes back unless it broke."""
        async with self._slots:
            try:
                smtp = await self._open()
                self._answered_at = asyncio.get_running_loop().time()
            except (aiosmtplib.SMTPException, OSError) as exc:
                # a greeting or EHLO that is refused says nothing about this mail: it counts as no conversation
                untrusted = tls.fault(exc, "mail server")
                raise errors.MailServerUnavailableError(untrusted or f"{type(exc).__name__}: {exc}") from exc
            try:
                yield smtp
            except (errors.MailDeferredError, errors.MailRefusedError):
                self._keep(smtp)
                raise
            except (aiosmtplib.SMTPException, OSError) as exc:
                smtp.close()
                raise errors.MailServerUnavailableError(f"{type(exc).__name__}: {exc}") from exc
            except BaseException:
                smtp.close()  # cancelled in the middle: the next reply would be taken for another command's
                raise
            self._keep(smtp)

    def _keep(self, smtp: aiosmtplib.SMTP) -> None:
        if smtp.is_connected:
            self._idle.append(smtp)

    async def _open(self) -> aiosmtplib.SMTP:
        while self._idle:
            smtp = self._idle.pop()
            try:
                await smtp.noop()
            except (aiosmtplib.SMTPException, OSError):
                smtp.close()  # servers end idle conversations; the next one, or a new one, will do
            else:
                return smtp
        smtp = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            local_hostname=self._mail_from.rpartition("@")[2],
            timeout=self._timeout_s,
            use_tls=self._security.mode == "tls",
            start_tls=True if self._security.mode == "starttls" else None,  # None: if the server offers it
            tls_context=self._tls,
            username=self._security.user or None,
            password=self._security.password or None,
        )
        await smtp.connect()
        if self._security.mode == "tls":
            await smtp.ehlo()  # here, as in the other modes: a refusal is not yet about any mail
        return smtp


def _refusal(exc: aiosmtplib.SMTPResponseException) -> errors.MailDeferredError | errors.MailRefusedError:
    text = privacy.scrubbed(exc.message[:300])  # servers like to repeat the recipient
    if 500 <= exc.code <= 599:
        return errors.MailRefusedError(f"smtp_{exc.code}", text)
    return errors.MailDeferredError(exc.code, text)
