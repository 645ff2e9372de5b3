"""The use case of email: send one mail, tell of it, confirmed, and only then let the message be acknowledged."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec

from sagapost_chassis import amqp, consuming, crashpoints, telemetry
from sagapost_contracts import envelope, events, topology
from sagapost_email import domain, errors, recent, sender, templates

SOURCE = "email"


class Outlets(msgspec.Struct, frozen=True, kw_only=True):
    """Where mails and events go; `attempts` is how often the broker brings one message before it gives up."""

    sender: sender.Sender
    publisher: amqp.Publisher
    mail_from: str
    recent: recent.Recent
    attempts: int = len(topology.RETRY_DELAYS_S) + 1


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
    """Send one mail and publish its outcome; a crash between the server's 250 and the note of it sends the mail a second time.

    A mail that was sent lately, as far as `recent` knows, is reported again to whoever asks for it, and not sent again.

    Raises:
        TransientError: not sent yet, and deliveries are left; or the outcome could not be published.

    """
    try:
        message = sender.compose(
            request, templates.render(request), mail_from=outlets.mail_from, traceparent=telemetry.current_traceparent()
        )
        with outlets.recent.sending(f"{request.template}-{request.saga_id}") as fresh:
            if fresh:
                await outlets.sender.send(message, request.recipient)
            else:
                telemetry.log.info("mail.known", order_id=request.order_id, template=request.template)
    except (errors.MailRefusedError, errors.MailDeferredError, errors.MailServerUnavailableError) as exc:
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
