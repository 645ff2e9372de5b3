"""The retry ladder's setting and its steps."""

import pytest

from sagapost_chassis import ladder, settings
from sagapost_email.settings import Settings as EmailSettings
from sagapost_order.settings import Settings as OrderSettings
from sagapost_payment.settings import Settings as PaymentSettings

FIELD = "retry_delays_s"
SERVICES: dict[type[settings.Common], dict[str, str]] = {
    OrderSettings: {"SAGAPOST_DATABASE_URL": "postgresql://x", "SAGAPOST_AMQP_URL": "amqp://x"},
    PaymentSettings: {"SAGAPOST_DATABASE_URL": "postgresql://x", "SAGAPOST_AMQP_URL": "amqp://x", "SAGAPOST_PROVIDER_URL": "http://x"},
    EmailSettings: {"SAGAPOST_AMQP_URL": "amqp://x", "SAGAPOST_SMTP_HOST": "x", "SAGAPOST_SMTP_PORT": "1"},
}


@pytest.mark.parametrize(("cls", "env"), SERVICES.items(), ids=["order", "payment", "email"])
@pytest.mark.parametrize("text", ["2", "1,5,31", "1,,5", "1;5", "-1", "1.0", "0", ",".join("1" * 101)])
def test_a_delay_without_a_queue_is_refused_at_start_by_name(cls: type[settings.Common], env: dict[str, str], text: str) -> None:
    """A ladder that would publish to a queue that nobody declared never starts, and the sentence names the variable's name."""
    with pytest.raises(settings.SettingsError, match=r"RETRY_DELAYS_S must be .*1,5,30,120,600"):
        settings.load(cls, env | {"SAGAPOST_RETRY_DELAYS_S": text})


@pytest.mark.parametrize(("cls", "env"), SERVICES.items(), ids=["order", "payment", "email"])
def test_every_service_has_a_ladder_and_takes_another(cls: type[settings.Common], env: dict[str, str]) -> None:
    """Without the variable a service's own ladder holds, all of it declared; with it, what the variable says."""
    own = ladder.parse(str(getattr(settings.load(cls, env), FIELD)))
    other = ladder.parse(str(getattr(settings.load(cls, env | {"SAGAPOST_RETRY_DELAYS_S": "1, 1,600"}), FIELD)))

    assert own == ((1, 5, 30, *(120,) * 8) if cls is PaymentSettings else (1, 5, 30, 120, 600))
    assert other == (1, 1, 600)


@pytest.mark.parametrize(
    ("attempt", "wish_s", "delay_s"),
    [(1, 0, 1), (2, 0, 5), (3, 0, 30), (4, 0, None), (10**12, 0, None), (1, 2, 5), (1, 5, 5), (3, 5, 30), (1, 31, 30), (3, 31, 30)],
)
def test_each_failure_waits_on_its_own_step_or_a_longer_one(attempt: int, wish_s: float, delay_s: int | None) -> None:
    """The n-th failure takes the n-th step, a wish skips shorter ones, the last is the longest wait, and after it nothing is left."""
    assert ladder.step((1, 5, 30), attempt, wish_s) == delay_s


@pytest.mark.parametrize(
    ("delays_s", "waits", "wish_s", "delay_s"),
    [
        ((1, 5, 30, 120, 600), 0, 0, 1),
        ((1, 5, 30, 120, 600), 1, 0, 5),
        ((1, 5, 30, 120, 600), 10**9, 0, 30),
        ((1, 5, 30, 120, 600), 0, 60, 120),
        ((1, 5, 30, 120, 600), 0, 10**6, 600),
        ((5, 1, 1), 9, 0, 5),
        ((1, 1), 9, 60, 1),
        ((600,), 3, 0, 600),
    ],
)
def test_a_failure_that_costs_no_attempt_always_has_a_wait(delays_s: tuple[int, ...], waits: int, wish_s: float, delay_s: int) -> None:
    """Its waits grow to half a minute and never end; a wish for a longer one is kept where the ladder has it."""
    assert ladder.pause(delays_s, waits, wish_s) == delay_s
