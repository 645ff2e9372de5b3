"""Closed unless opened: development mode stays on this machine, and an image without variables is in production mode."""

import pathlib
import re
import shlex
import socket

import pytest
import yaml

import sagapost_email.settings
import sagapost_gateway.settings
import sagapost_order.settings
import sagapost_payment.settings
import sagapost_relay.settings
import sagapost_sandbox.mailbox.settings
import sagapost_sandbox.provider.settings
from sagapost_chassis import listeners, loopback, settings

ROOT = pathlib.Path(__file__).parents[2]
STORE = {"SAGAPOST_DATABASE_URL": "postgresql://h/db", "SAGAPOST_AMQP_URL": "amqp://h/"}
SERVICES: list[tuple[type[settings.Common], dict[str, str]]] = [
    (sagapost_gateway.settings.Settings, {}),
    (sagapost_order.settings.Settings, STORE),
    (sagapost_payment.settings.Settings, STORE | {"SAGAPOST_PROVIDER_URL": "http://h"}),
    (sagapost_email.settings.Settings, {"SAGAPOST_AMQP_URL": "amqp://h/", "SAGAPOST_SMTP_HOST": "h", "SAGAPOST_SMTP_PORT": "25"}),
    (sagapost_relay.settings.Settings, STORE),
    (sagapost_sandbox.provider.settings.Settings, {"SAGAPOST_PROVIDER_LEDGER": "ledger"}),
    (sagapost_sandbox.mailbox.settings.Settings, {"SAGAPOST_MAILBOX_LEDGER": "ledger"}),
]
OPEN = ("0.0.0.0", "::", "::0", "0", "192.0.2.7", "10.1.2.3", "fe80::1", "2001:db8::7", "::ffff:192.0.2.7", "::ffff:0.0.0.0", "0x0")
LOCAL = ("127.0.0.1", "127.9.8.7", "127.1", "::1", "::ffff:127.0.0.1", "localhost")


@pytest.mark.parametrize(("cls", "environ"), SERVICES)
@pytest.mark.parametrize("env", [{}, {"SAGAPOST_ENV": "development"}])
@pytest.mark.parametrize("opened", ["", "no", "YES", "true", "1", " yes"])
def test_no_service_in_development_mode_listens_where_others_reach_it(
    cls: type[settings.Common], environ: dict[str, str], env: dict[str, str], opened: str
) -> None:
    """Whether development was chosen or is the default: only the exact word of the second variable opens it, and the refusal says so."""
    for host in OPEN:
        with pytest.raises(settings.SettingsError) as caught:
            settings.load(cls, environ | env | {"SAGAPOST_HOST": host, "SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS": opened})

        assert str(caught.value).startswith(f"refused in development: SAGAPOST_HOST={host}: other machines can reach ")
        assert "SAGAPOST_ENV=production" in str(caught.value)
        assert "SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS=yes" in str(caught.value)


@pytest.mark.parametrize(("cls", "environ"), SERVICES)
def test_development_mode_listens_on_this_machine(cls: type[settings.Common], environ: dict[str, str]) -> None:
    """Every way to write a loopback address is accepted, and no second variable is needed."""
    for host in LOCAL:
        assert settings.load(cls, environ | {"SAGAPOST_HOST": host}).host == host


@pytest.mark.parametrize(("cls", "environ"), SERVICES)
def test_the_second_variable_opens_development_mode(cls: type[settings.Common], environ: dict[str, str]) -> None:
    """Who writes both variables has decided it; compose.yaml does."""
    opened = {"SAGAPOST_HOST": "0.0.0.0", "SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS": "yes"}

    assert not settings.load(cls, environ | opened).stays_local()


def test_an_open_address_is_named_beside_what_is_missing() -> None:
    """A start with several faults says all of them at once."""
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(sagapost_relay.settings.Settings, {"SAGAPOST_HOST": "::"})

    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "SAGAPOST_DATABASE_URL is not set",
        "SAGAPOST_AMQP_URL is not set",
        "refused in development",
    ]


@pytest.mark.parametrize(
    ("resolved", "refused"),
    [
        (["127.0.0.1"], []),
        (["127.0.1.1", "::1"], []),
        (["192.0.2.7"], ["192.0.2.7"]),
        (["127.0.0.1", "2001:db8::7"], ["2001:db8::7"]),  # a server listens on each address of its name
        (["fe80::1%eth0"], ["fe80::1%eth0"]),
    ],
)
def test_a_host_name_counts_as_what_it_resolves_to(monkeypatch: pytest.MonkeyPatch, resolved: list[str], refused: list[str]) -> None:
    """All its addresses are looked at, in both families."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 0)) for address in resolved])

    assert loopback.beyond("shop.example") == refused


@pytest.mark.parametrize("host", ["no-such-name.invalid", "x" * 70, "\x00"])
def test_a_host_without_an_address_is_refused_in_development(host: str) -> None:
    """It could get any address between the look and the moment in which the socket is bound."""
    with pytest.raises(settings.SettingsError, match=r"SAGAPOST_HOST: .* has no address"):
        settings.load(sagapost_gateway.settings.Settings, {"SAGAPOST_HOST": host})


def test_addresses_of_handed_over_sockets_are_known() -> None:
    """What LISTEN_FDS hands over is bound already, whatever SAGAPOST_HOST says: nothing else than the socket's own address counts."""
    assert listeners.addresses({"LISTEN_FDS": "2", "LISTEN_PID": "1"}) == []


def test_the_images_are_in_production_mode() -> None:
    """The last stage of the Dockerfile, which is what runs, says so, and nothing opens development on the addresses it listens on."""
    last = (ROOT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2].replace("\\\n", " ")
    variables = dict(
        word.split("=", 1) for line in re.findall(r"^ENV (.*)$", last, re.MULTILINE) for word in shlex.split(line) if "=" in word
    )

    assert variables["SAGAPOST_ENV"] == settings.PRODUCTION
    assert variables["SAGAPOST_HOST"] == "0.0.0.0"
    assert "SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS" not in variables
    assert "SAGAPOST_ENV" not in re.sub(r"^ENV .*$", "", last, flags=re.MULTILINE)


def test_compose_opens_development_in_so_many_words() -> None:
    """Each of our containers gets both variables, and every port of the file is published on 127.0.0.1."""
    composed = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    ours = {name: one for name, one in composed.items() if one["image"].startswith("sagapost-")}

    assert len(ours) >= 9
    for name, one in ours.items():
        assert one["environment"]["SAGAPOST_ENV"] == "${SAGAPOST_ENV:-development}", name
        assert one["environment"]["SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS"] == "yes", name
    assert all(port.startswith("127.0.0.1:") for one in composed.values() for port in one.get("ports", ()))


def test_a_published_gateway_needs_the_second_variable() -> None:
    """compose.private.yaml on another address than loopback: the address alone does not open development mode."""
    text = (ROOT / "compose.private.yaml").read_text(encoding="utf-8")

    assert "SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS: ${SAGAPOST_DEVELOPMENT_ON_ANY_ADDRESS:-${SAGAPOST_GATEWAY_ADDRESS:-yes}}" in text
