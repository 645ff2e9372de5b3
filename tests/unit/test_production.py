"""Production mode: each single weak setting is refused by name, and no refusal says a secret."""

import contextlib
import pathlib
import random
import re

import msgspec
import pytest

import sagapost_email.settings
import sagapost_gateway.settings
import sagapost_order.settings
import sagapost_payment.settings
import sagapost_relay.settings
import sagapost_sandbox.mailbox.settings
import sagapost_sandbox.provider.settings
from sagapost_chassis import production, settings
from sagapost_contracts import topology
from sagapost_ops import errors, passwords, plan, roles, targets
from sagapost_ops.topology import accounts

SECRET = "9f1c4be27a60d35e8b"
DATABASE = f"postgresql://order_service:{SECRET}@db.internal/order_db?sslmode=verify-full"
BROKER = f"amqps://order:{SECRET}@mq.internal/"
STORE = {"SAGAPOST_DATABASE_URL": DATABASE, "SAGAPOST_AMQP_URL": BROKER}
MAIL = {
    "SAGAPOST_AMQP_URL": BROKER,
    "SAGAPOST_SMTP_HOST": "mail.internal",
    "SAGAPOST_SMTP_PORT": "587",
    "SAGAPOST_SMTP_TLS": "starttls",
    "SAGAPOST_SMTP_USER": "shop",
    "SAGAPOST_SMTP_PASSWORD": SECRET,
}
INTERNAL = {"SAGAPOST_INTERNAL_SECRET": "5d0c82e1b7f94a36d1e0b85f27c4936a"}
ORDER = (sagapost_order.settings.Settings, STORE | INTERNAL)
RELAY = (sagapost_relay.settings.Settings, STORE)
PAYMENT = (sagapost_payment.settings.Settings, STORE | {"SAGAPOST_PROVIDER_URL": "https://psp.example"})
EMAIL = (sagapost_email.settings.Settings, MAIL | INTERNAL | {"SAGAPOST_ORDER_URL": "http://order.internal:8001"})
GATEWAY = (sagapost_gateway.settings.Settings, INTERNAL)
Service = tuple[type[settings.Common], dict[str, str]]


def _refusals(service: Service, changed: dict[str, str]) -> list[str]:
    cls, environ = service
    try:
        settings.load(cls, environ | {"SAGAPOST_ENV": "production"} | changed)
    except settings.SettingsError as exc:
        return str(exc).splitlines()
    return []


def _database(**changed: str) -> dict[str, str]:
    query = {"sslmode": "verify-full"} | changed
    listed = "&".join(f"{name}={value}" for name, value in query.items() if value)
    return {"SAGAPOST_DATABASE_URL": f"postgresql://u:{SECRET}@h/db?{listed}"}


def _broker(url: str) -> dict[str, str]:
    return {"SAGAPOST_AMQP_URL": url}


@pytest.mark.parametrize("service", [ORDER, RELAY, PAYMENT, EMAIL, GATEWAY])
def test_strong_settings_are_accepted(service: Service) -> None:
    """The settings that the following tests weaken one by one start in production."""
    assert _refusals(service, {}) == []


@pytest.mark.parametrize(
    ("service", "changed", "name", "says"),
    [
        *(
            (service, changed, "SAGAPOST_DATABASE_URL", says)
            for service in (ORDER, RELAY, PAYMENT)
            for changed, says in (
                (_database(sslmode=""), "verified TLS"),
                (_database(sslmode="disable"), "verified TLS"),
                (_database(sslmode="prefer"), "verified TLS"),
                (_database(sslmode="require"), "verified TLS"),
                (_database(sslrootcert="/nowhere/ca.pem"), "sslrootcert cannot be read"),
                ({"SAGAPOST_DATABASE_URL": DATABASE.replace(SECRET, "order_password")}, "development default"),
                ({"SAGAPOST_DATABASE_URL": DATABASE.replace(SECRET, "payment_password")}, "development default"),
                ({"SAGAPOST_DATABASE_URL": DATABASE.replace(SECRET, "9f1c4be27a60d35")}, "fewer than 16"),
                ({"SAGAPOST_DATABASE_URL": DATABASE.replace(SECRET, "aaaaaaaaaaaaaaaaaaaaaaaa")}, "guessed"),
                ({"SAGAPOST_DATABASE_URL": DATABASE.replace(SECRET, "MyLongPassword-2026")}, "guessed"),
                ({"SAGAPOST_DATABASE_URL": DATABASE.replace(f":{SECRET}", "")}, "no password"),
                ({"SAGAPOST_DATABASE_URL": "host=h dbname=db"}, "no URL of PostgreSQL"),
                (_database(ssl="true"), "verified TLS"),
                ({"SAGAPOST_DATABASE_URL": f"{DATABASE}&sslmode=disable"}, "verified TLS"),
            )
        ),
        *(
            (service, changed, "SAGAPOST_AMQP_URL", says)
            for service in (ORDER, RELAY, PAYMENT, EMAIL)
            for changed, says in (
                (_broker(f"amqp://order:{SECRET}@mq.internal/"), "not encrypted"),
                (_broker(f"{BROKER}?no_verify_ssl=1"), "no_verify_ssl"),
                (_broker(f"{BROKER}?no_verify_ssl="), "no_verify_ssl"),
                (_broker(f"{BROKER}?cafile=/nowhere/ca.pem"), "cafile cannot be read"),
                (_broker("amqps://order:ecommerce123@h/"), "development default"),
                (_broker("amqps://order:order-password@h/"), "development default"),
                (_broker("amqps://guest:guest@h/"), "development default"),
                (_broker("amqps://h/"), "development default"),
                (_broker("amqps://order:9f1c4be27a60d35@h/"), "fewer than 16"),
                (_broker("amqps://order:%61%61%61%61%61%61@h/"), "fewer than 16"),
            )
        ),
        *(
            (service, {"SAGAPOST_INTERNAL_SECRET": secret}, "SAGAPOST_INTERNAL_SECRET", says)
            for service in (ORDER, EMAIL, GATEWAY)
            for secret, says in (
                ("", "not set"),
                ("5d0c82e1b7f94a36d1e0b85f27c4936", "fewer than 32"),
                ("development-internal-secret-of-compose", "is the development default"),
                ("development-internal-secret-of-compose-9f1c4be27a60d35e", "contains a development default"),
                ("9f1c4be27a60d35e" * 3, "guessed"),
                ("aaaaaaaabbbbbbbbccccccccddddddddeeeeeeee", "guessed"),
                ("abcdefghijklmnopqrstuvwxyz0123456789", "guessed"),
            )
        ),
        (PAYMENT, {"SAGAPOST_PROVIDER_URL": "http://psp.example"}, "SAGAPOST_PROVIDER_URL", "https://"),
        (EMAIL, {"SAGAPOST_SMTP_TLS": "off", "SAGAPOST_SMTP_USER": "", "SAGAPOST_SMTP_PASSWORD": ""}, "SAGAPOST_SMTP_TLS", "in the clear"),
        (EMAIL, {"SAGAPOST_ORDER_URL": ""}, "SAGAPOST_ORDER_URL", "not set"),
        (EMAIL, {"SAGAPOST_SMTP_PASSWORD": "short"}, "SAGAPOST_SMTP_PASSWORD", "fewer than 16"),
        *((service, {"SAGAPOST_CRASH": "order.after_commit"}, "SAGAPOST_CRASH", "for tests") for service in (ORDER, RELAY, PAYMENT, EMAIL)),
    ],
)
def test_one_weak_setting_is_refused_by_name(service: Service, changed: dict[str, str], name: str, says: str) -> None:
    """One weak setting among strong ones keeps the process from starting; exactly it is named, with what to do, without its value."""
    refusals = _refusals(service, changed)

    assert len(refusals) == 1
    assert refusals[0].startswith(f"refused in production: {name}: ")
    assert says in refusals[0]
    assert SECRET not in refusals[0]


@pytest.mark.parametrize("mode", ["off", ""])
def test_a_mail_password_never_travels_in_the_clear(mode: str) -> None:
    """Not even in development."""
    with pytest.raises(settings.SettingsError, match="in the clear"):
        settings.load(sagapost_email.settings.Settings, MAIL | {"SAGAPOST_SMTP_TLS": mode})


def test_every_weak_setting_is_named_at_once() -> None:
    """Nobody mends one weak setting after the other; a missing one stands beside them."""
    weak = {
        "SAGAPOST_DATABASE_URL": "postgresql://payment_user:payment_password@h/payment_db",
        "SAGAPOST_AMQP_URL": "amqp://payment:payment-password@h/",
        "SAGAPOST_PROVIDER_URL": "http://h",
        "SAGAPOST_CRASH": "payment.after_charge",
        "SAGAPOST_LOOK_S": "soon",
    }

    refusals = _refusals((sagapost_payment.settings.Settings, {}), weak)

    text = "\n".join(refusals)
    assert "SAGAPOST_LOOK_S is wrong" in text
    assert text.count("refused in production: SAGAPOST_DATABASE_URL: ") == 2
    assert text.count("refused in production: SAGAPOST_AMQP_URL: ") == 2
    assert "refused in production: SAGAPOST_PROVIDER_URL: " in text
    assert "refused in production: SAGAPOST_CRASH: " in text
    assert not any(word in text for word in ("payment_password", "payment-password"))


def test_a_weak_secret_from_a_file_is_refused_by_its_variable(tmp_path: pathlib.Path) -> None:
    """The way a secret comes makes it no stronger."""
    (tmp_path / "url").write_text("amqps://order:ecommerce123@h/\n", encoding="utf-8")

    refusals = _refusals(ORDER, {"SAGAPOST_AMQP_URL": "", "SAGAPOST_AMQP_URL_FILE": str(tmp_path / "url")})

    assert [refusal.split(": ")[1] for refusal in refusals] == ["SAGAPOST_AMQP_URL"]


@pytest.mark.parametrize(
    ("cls", "variable"),
    [
        (sagapost_sandbox.provider.settings.Settings, "SAGAPOST_PROVIDER_LEDGER"),
        (sagapost_sandbox.mailbox.settings.Settings, "SAGAPOST_MAILBOX_LEDGER"),
    ],
)
def test_the_sandbox_does_not_run_in_production(cls: type[settings.Common], variable: str) -> None:
    """A provider that moves no money, or a mail server that delivers nothing, must not be taken for a real one."""
    refusals = _refusals((cls, {variable: "ledger.jsonl"}), {})

    assert len(refusals) == 1
    assert "the sandbox's" in refusals[0]


def test_every_url_with_credentials_is_guarded() -> None:
    """A setting that holds an address with a password, or a secret, has a rule: its repr is hidden, and production looks at it."""
    classes = (
        sagapost_email.settings.Settings,
        sagapost_gateway.settings.Settings,
        sagapost_order.settings.Settings,
        sagapost_payment.settings.Settings,
        sagapost_relay.settings.Settings,
    )
    guarded = {"database_url", "amqp_url", "provider_url", "smtp_password"}
    harmless = {"order_url", "mailbox_url"}  # the gateway's: inside the private network, and a link on a page

    found = {
        (cls.__module__, field.name): "rule" in repr(field.type)
        for cls in classes
        for field in msgspec.structs.fields(cls)
        if re.search("url|password|secret|token", field.name) and field.name not in harmless
    }

    assert found == dict.fromkeys(found, True)
    assert guarded <= {name for _, name in found}


def test_every_default_password_is_known() -> None:
    """Whatever `up` and compose.yaml use where nobody chose a password is on the list of refused ones."""
    compose = "".join(path.read_text(encoding="utf-8") for path in pathlib.Path(__file__).parents[2].glob("compose*.yaml"))
    defaults = set(re.findall(r"\$\{SAGAPOST_\w*(?:PASSWORD|SECRET|COOKIE)\w*:-([^}]+)\}", compose))
    defaults |= {password for _, password, _ in plan.DATABASES.values()} | {plan.BROKER_USER[1]}
    defaults |= {accounts.development_password(user.name) for user in topology.USERS}
    defaults |= {roles.development_password(role.name) for role in roles.ROLES}

    assert len(defaults) >= 12
    assert defaults <= production.DEFAULTS


def test_the_operator_s_commands_refuse_weak_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner's and the operator's addresses carry the widest rights: in production they are held to the same rules, all at once."""
    weak = {
        "SAGAPOST_ORDER_DATABASE_URL": f"postgresql://order_user:{SECRET}@h/order_db",
        "SAGAPOST_PAYMENT_DATABASE_URL": "postgresql://payment_user:payment_password@h/payment_db?sslmode=verify-full",
        "SAGAPOST_AMQP_URL": f"amqp://operator:{SECRET}@h/",
        "SAGAPOST_MANAGEMENT_URL": f"http://operator:{SECRET}@h:15672",
    }
    for name, value in ({"SAGAPOST_ENV": "production"} | weak).items():
        monkeypatch.setenv(name, value)

    with pytest.raises(errors.UnfitError) as caught:
        targets.find(0)

    assert [line.split(": ")[1] for line in caught.value.message.splitlines()] == list(weak)
    assert SECRET not in caught.value.message


def test_the_operator_s_addresses_can_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """As every setting of a service can."""
    (tmp_path / "url").write_text(f"{DATABASE}\n", encoding="utf-8")
    monkeypatch.setenv("SAGAPOST_ORDER_DATABASE_URL_FILE", str(tmp_path / "url"))

    assert targets.find(0).order_database_url == DATABASE


@pytest.mark.parametrize(
    "password",
    [
        "ecommerce123ecommerce123",
        "Ecommerce123-9f1c4be27a60d35e8b",
        "9f1c4be27a60d35e8b-order-password",
        "Passw0rd-Passw0rd-",
        "P@$$w0rd!2026-Shop",
        "S3cret-s3cret-s3cret",
        "x9k2m4x9k2m4x9k2m4x9k2m4",
        "abcdefghijklmnopqrst",
        "zyxwvutsrqponmlkjihg",
        "01234567890123456789",
        "aaaabbbbccccddddeeeeffffgggg",
        "qwertyuiopasdfghjkl1",
        "123412341234123412341234",
    ],
)
def test_a_long_password_can_be_weak(password: str) -> None:
    """Length alone is no strength: a default inside, a word in disguise, a repetition, a run."""
    assert production.secret(password) != []
    assert password not in production.secret(password)[0]


@pytest.mark.parametrize("size_bytes", [8, 12, 24, 32, 64])
def test_random_passwords_are_accepted(size_bytes: int) -> None:
    """What `openssl rand -hex` gives passes: of 500 drawn, at most a handful of the shortest look too regular."""
    drawn = random.Random(size_bytes)
    refused = [text for _ in range(500) if production.secret(text := drawn.randbytes(size_bytes).hex())]

    assert len(refused) <= (5 if size_bytes == 8 else 0)


@pytest.mark.parametrize(
    ("environ", "refused"),
    [
        ({"SAGAPOST_RABBITMQ_COOKIE": "development-cookie"}, True),
        ({"SAGAPOST_RABBITMQ_COOKIE": "short"}, True),
        ({"SAGAPOST_RABBITMQ_COOKIE": "cookiecookiecookie"}, True),
        ({"SAGAPOST_RABBITMQ_COOKIE": SECRET}, False),
        ({}, False),
    ],
)
def test_the_broker_s_cookie_is_held_to_the_same(environ: dict[str, str], *, refused: bool) -> None:
    """Whoever knows the Erlang cookie commands every node: compose.cluster.yaml gives it to `topology`, which refuses a weak one."""
    production_mode = environ | {"SAGAPOST_ENV": "production"}

    passwords.require_cookie(environ)
    with pytest.raises(errors.UnfitError, match="SAGAPOST_RABBITMQ_COOKIE") if refused else contextlib.nullcontext():
        passwords.require_cookie(production_mode)
