"""The use case of email: send one mail, publish its outcome, and return when that is confirmed; the message is acknowledged afterwards."""

import asyncio
from datetime import UTC, datetime
from email.message import EmailMessage
from uuid import UUID

import msgspec

from sagapost_chassis import amqp, consuming, crashpoints, telemetry
from sagapost_contracts import envelope, events, topology
from sagapost_email import domain, errors, orders, recent, sender, templates

SOURCE = "email"


class Outlets(msgspec.Struct, frozen=True, kw_only=True):
    """Where mails and events go; `attempts` is how often the broker brings one message before it gives up, `stop` ends all waits."""

    sender: sender.Sender
    publisher: amqp.Publisher
    mail_from: str
    recent: recent.Recent
    order: orders.Orders = msgspec.field(default_factory=orders.Orders)
    attempts: int = len(topology.RETRY_DELAYS_S) + 1
    stop: asyncio.Event = msgspec.field(default_factory=asyncio.Event)


async def on_payment_processed(outlets: Outlets, delivery: consuming.Delivery, event: events.PaymentProcessed) -> None:
    """Send the receipt."""
    await _notify(outlets, delivery, domain.of_receipt(event), asked_by=None)


async def on_order_cancelled(outlets: Outlets, delivery: consuming.Delivery, event: events.OrderCancelled) -> None:
    """Send the cancellation mail."""
    await _notify(outlets, delivery, domain.of_cancellation(event), asked_by=None)


async def on_request_notification(outlets: Outlets, delivery: consuming.Delivery, command: events.RequestNotification) -> None:
    """Send the named mail again."""
    await _notify(outlets, delivery, domain.of_command(command), asked_by=delivery.message_id)


async def _notify(outlets: Outlets, delivery: consuming.Delivery, request: domain.Request, *, asked_by: UUID | None) -> None:
    """Send one mail and publish its outcome.

    A mail that was accepted lately, as far as `recent` knows, is reported again to whoever asks for it, and not sent again. Between the
    server's 250 and the confirmed event nothing is done that may fail, beyond those two: no line is logged there.

    Raises:
        TransientError: not sent yet, and deliveries are left; or the outcome could not be published.
        errors.UnknownSagaError: the order service has no such saga.

    """
    try:
        message = sender.compose(
            request, templates.render(request), mail_from=outlets.mail_from, traceparent=telemetry.current_traceparent()
        )
        async with outlets.recent.sending(f"{request.template}-{request.saga_id}", request.recipient) as claim:
            if claim.fresh:
                await _send(outlets, request, message, claim)
    except errors.NotWantedError as exc:
        telemetry.log.info("mail.withheld", order_id=request.order_id, template=request.template, state=exc.state)
        return
    except (errors.MailRefusedError, errors.MailDeferredError) as exc:
        if not isinstance(exc, errors.MailRefusedError) and delivery.attempt < outlets.attempts:
            raise
        # The last delivery of a mail that was only deferred is no dead letter: the saga's deadlines ask for the mail again.
        permanent = isinstance(exc, errors.MailRefusedError)
        await _publish(outlets, delivery, domain.failed(request, exc.code, permanent=permanent), asked_by)
        telemetry.log.warning("mail.failed", order_id=request.order_id, template=request.template, code=exc.code, permanent=permanent)
        return
    await crashpoints.crashpoint("email.after_accept")
    await _publish(outlets, delivery, domain.sent(request, str(message["Message-ID"])), asked_by)
    await crashpoints.crashpoint("email.after_publish")
    if not claim.fresh:
        telemetry.log.info("mail.known", order_id=request.order_id, template=request.template)


async def _send(outlets: Outlets, request: domain.Request, message: EmailMessage, claim: domain.Claim) -> None:
    """Send a claimed mail, a receipt only with the order service's leave and within the time that it grants."""
    await outlets.sender.gate.wait(outlets.stop)
    ends_at = None
    if request.template == events.RECEIPT:
        await outlets.order.gate.wait(outlets.stop)
        ends_at = await outlets.order.ask(request.saga_id)
    try:
        async with asyncio.timeout_at(ends_at):
            await outlets.sender.send(message, request.recipient, claim)
    except TimeoutError as exc:
        if claim.in_doubt:
            raise errors.MailInDoubtError("the time that the order service granted ended behind the final dot") from exc
        raise errors.MailServerUnavailableError("the time that the order service granted was too short") from exc


async def _publish(
    outlets: Outlets, delivery: consuming.Delivery, event: events.EmailSent | events.EmailFailed, asked_by: UUID | None
) -> None:
    sealed = envelope.seal(
        event,
        message_id=domain.event_id(domain.outcome(event), event.template, event.saga_id, asked_by),
        source=SOURCE,
        time=datetime.now(UTC),
        causation_id=str(delivery.message_id),
        traceparent=telemetry.current_traceparent(),
    )
    await outlets.publisher.publish(amqp.message_of(sealed), exchange=topology.EXCHANGE, routing_key=sealed.routing_key)
