"""Mails on the wire: builds MIME messages and hands them to the mail server over a few kept connections; knows no event."""

import asyncio
import re
from contextlib import suppress
from datetime import UTC, datetime
from email.headerregistry import Address, BaseHeader, HeaderRegistry
from email.message import EmailMessage
from email.policy import SMTP
from typing import Final, Literal, Self

import aiosmtplib

from sagapost_chassis import errors as failures
from sagapost_chassis import privacy, settings, tls
from sagapost_email import domain, errors, gate


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
_IDLE_TIMEOUT_S: Final = 5.0  # an idle conversation that does not answer for so long is dead
_GO_ON: Final = 354
_ACCEPTED: Final = 250
_CLOSING: Final = 421
# a sequence of commands that the server lost track of, and authentication (RFC 4954): no other mail would fare better
_NOT_ABOUT_THE_MAIL: Final = frozenset({503, 530, 534, 535, 538})
_BEFORE_THE_RECIPIENT: Final = (aiosmtplib.SMTPHeloError, aiosmtplib.SMTPSenderRefused)
_DOTS: Final = re.compile(rb"^\.", re.MULTILINE)


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


class _EndedError(Exception):
    """A kept conversation did not take this mail, which says nothing about the mail."""


class Sender:
    """At most `size` conversations with one mail server, kept open between mails.

    A command may take `timeout_s` seconds, the answer behind the final dot `dot_timeout_s`: a server may be storing the mail, and whoever
    hangs up then sends it again (RFC 5321, 4.5.3.2.6: 10 minutes).

    Raises:
        settings.CannotStartError: the CA's file cannot be used.

    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        mail_from: str,
        size: int = 16,
        timeout_s: float = 30,
        dot_timeout_s: float = 600,
        security: Security | None = None,
    ) -> None:
        self.gate = gate.Gate()
        self._host = host
        self._port = port
        self._mail_from = mail_from
        self._timeout_s = timeout_s
        self._dot_timeout_s = dot_timeout_s
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

    async def send(self, message: EmailMessage, recipient: str, claim: domain.Claim | None = None) -> None:
        """Hand over one mail; returns after the server has said that it has it.

        `claim.in_doubt` is true from the moment when the server has the whole mail until it has answered, also if this call is cancelled.
        A kept conversation that fails before that moment, or ends with 421, is replaced by a new one at once.

        Raises:
            errors.MailDeferredError: the server answered 4xx, or refused the sender with 5xx.
            errors.MailRefusedError: the server answered 5xx to the recipient, to DATA or to the mail.
            errors.MailServerUnavailableError: no conversation, or it broke off before the server had the mail.
            errors.MailInDoubtError: it broke off afterwards; the mail was probably taken.

        """
        body, claim = _dotted(message.as_bytes()), claim or domain.Claim(fresh=True)
        async with self._slots:
            if (kept := await self._kept()) is not None:
                with suppress(_EndedError):
                    return await self._deliver(kept, recipient, body, claim, kept=True)
            return await self._deliver(await self._open(), recipient, body, claim, kept=False)

    async def check(self) -> bool:
        """Tell whether the mail server answers."""
        if asyncio.get_running_loop().time() - self._answered_at > _RECENTLY_S:
            async with self._slots:
                self._keep(await self._kept() or await self._open())
        return True

    async def _deliver(self, smtp: aiosmtplib.SMTP, recipient: str, body: bytes, claim: domain.Claim, *, kept: bool) -> None:
        try:
            await self._converse(smtp, recipient, body, claim)
        except aiosmtplib.SMTPResponseException as exc:
            if kept and (exc.code == _CLOSING or not _answers_dot(exc)):
                smtp.close()
                raise _EndedError from exc
            if exc.code == _CLOSING:
                smtp.close()
            self._keep(smtp)
            raise _refusal(exc) from exc
        except (aiosmtplib.SMTPException, OSError) as exc:
            smtp.close()
            if claim.in_doubt:
                raise errors.MailInDoubtError(f"the conversation broke behind the final dot: {type(exc).__name__}") from exc
            if kept:
                raise _EndedError from exc
            raise errors.MailServerUnavailableError(f"{type(exc).__name__}: {exc}") from exc
        except BaseException:
            smtp.close()  # cancelled in the middle: the next reply would be taken for another command's
            raise
        self._keep(smtp)

    async def _converse(self, smtp: aiosmtplib.SMTP, recipient: str, body: bytes, claim: domain.Claim) -> None:
        size = [f"size={len(body)}"] if smtp.supports_extension("size") else []
        await smtp.mail(self._mail_from, options=size)
        await smtp.rcpt(recipient)
        start = await smtp.execute_command(b"DATA")
        protocol = smtp.protocol
        if start.code != _GO_ON or protocol is None:
            raise aiosmtplib.SMTPResponseException(start.code, start.message)
        protocol.write(body)
        claim.in_doubt = True
        answer = await protocol.read_response(timeout=self._dot_timeout_s)
        claim.in_doubt = False
        if answer.code != _ACCEPTED:
            raise aiosmtplib.SMTPDataError(answer.code, answer.message)

    async def _kept(self) -> aiosmtplib.SMTP | None:
        """Take an idle conversation that still answers; RSET also clears what a refused mail left behind in it."""
        while self._idle:
            smtp = self._idle.pop()
            try:
                await smtp.rset(timeout=min(self._timeout_s, _IDLE_TIMEOUT_S))
            except aiosmtplib.SMTPResponseException:
                smtp.close()
            except (aiosmtplib.SMTPException, OSError):
                smtp.close()
                while self._idle:  # whatever ended this one, the server or something in between, has most likely ended the others too
                    self._idle.pop().close()
            except BaseException:
                smtp.close()
                raise
            else:
                self._answered_at = asyncio.get_running_loop().time()
                return smtp
        return None

    def _keep(self, smtp: aiosmtplib.SMTP) -> None:
        if smtp.is_connected:
            self._idle.append(smtp)

    async def _open(self) -> aiosmtplib.SMTP:
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
        try:
            await smtp.connect()
            await smtp.ehlo()  # here in every mode: a refusal is not yet about any mail
        except (aiosmtplib.SMTPException, OSError) as exc:
            smtp.close()
            self.gate.failed()
            # a greeting or EHLO that is refused says nothing about this mail: it counts as no conversation
            untrusted = tls.fault(exc, "mail server")
            raise errors.MailServerUnavailableError(untrusted or f"{type(exc).__name__}: {exc}") from exc
        except BaseException:
            smtp.close()
            raise
        self.gate.passed()
        self._answered_at = asyncio.get_running_loop().time()
        return smtp


def _dotted(body: bytes) -> bytes:
    """Double the dots that begin a line, and add the final one (RFC 5321, 4.5.2)."""
    return _DOTS.sub(b"..", body) + b".\r\n"


def _answers_dot(exc: aiosmtplib.SMTPResponseException) -> bool:
    return isinstance(exc, aiosmtplib.SMTPDataError)


def _refusal(exc: aiosmtplib.SMTPResponseException) -> failures.FailureError:
    text = privacy.scrubbed(exc.message[:300])  # servers like to repeat the recipient
    if exc.code in _NOT_ABOUT_THE_MAIL:
        return errors.MailServerUnavailableError(f"{exc.code} {text}")
    # The server has not seen the recipient or the mail: a 5xx is about the sender, and would end every mail of that hour.
    if 500 <= exc.code <= 599 and not isinstance(exc, _BEFORE_THE_RECIPIENT):
        return errors.MailRefusedError(f"smtp_{exc.code}", text)
    return errors.MailDeferredError(exc.code, text)
