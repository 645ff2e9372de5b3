"""The compose files: who shares a network with whom, what every container is denied, and that no log fills the disk."""

import itertools
import pathlib
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
OPERATOR = "ops"  # started by hand, and for what it does it must reach everything
# what must talk, the caller first; beside these only neighbours of one database or of the broker share a network
TALK = {
    ("gateway", "order"),
    ("email", "order"),
    ("order", "order-db"),
    ("relay-order", "order-db"),
    ("migrate-order", "order-db"),
    ("payment", "payment-db"),
    ("relay-payment", "payment-db"),
    ("migrate-payment", "payment-db"),
    ("payment", "provider"),
    ("email", "mailpit"),
    *((name, "rabbitmq") for name in ("order", "payment", "email", "relay-order", "relay-payment", "topology")),
}
APART = [
    *((name, "order") for name in ("payment", "payment-db", "relay-payment", "provider", "mailpit", "topology", "migrate-payment")),
    *(("gateway", name) for name in ("order-db", "payment-db", "rabbitmq", "mailpit", "provider", "payment", "email", "relay-order")),
    *(("email", name) for name in ("order-db", "payment-db", "provider", "payment", "relay-order", "relay-payment")),
    *(("payment", name) for name in ("order-db", "mailpit", "relay-order")),
    *(("mailpit", name) for name in ("order-db", "payment-db", "provider", "relay-order", "relay-payment")),
    ("order-db", "payment-db"),
    ("order-db", "provider"),
    ("relay-order", "payment-db"),
    ("relay-payment", "order-db"),
    ("topology", "order-db"),
    ("topology", "payment-db"),
]


def _read(*names: str) -> dict[str, Any]:
    """Return services and networks of some compose files, one over the other; lists and mappings of a service are not mixed."""
    merged: dict[str, Any] = {"services": {}, "networks": {}}
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8").replace("!reset ", "").replace("!override", "")
        document = yaml.safe_load(text)
        for service, one in document["services"].items():
            merged["services"][service] = merged["services"].get(service, {}) | one
        merged["networks"] |= {network: one or {} for network, one in document.get("networks", {}).items()}
    return merged


def _shared(services: dict[str, Any]) -> set[frozenset[str]]:
    pairs = itertools.combinations((name for name in services if name != OPERATOR), 2)
    return {frozenset(pair) for pair in pairs if set(services[pair[0]]["networks"]) & set(services[pair[1]]["networks"])}


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.private.yaml"), ("compose.yaml", "compose.cluster.yaml")])
def test_only_who_must_talk_shares_a_network(files: tuple[str, ...]) -> None:
    """Each caller reaches what it calls; only the gateway and email reach the order service, and a database its own service's side."""
    services = _read(*files)["services"]

    shared = _shared(services)

    assert {pair for pair in TALK if frozenset(pair) not in shared} == set()
    assert {pair for pair in APART if frozenset(pair) in shared} == set()
    assert all(one.get("networks") for one in services.values())  # a service without would be in a network with all others of its kind


def test_private_networks_have_no_way_out() -> None:
    """With compose.private.yaml only the gateway's own network leads out; without it, those whose ports are published do too."""
    private, plain = _read("compose.yaml", "compose.private.yaml"), _read("compose.yaml")

    assert {name for name, one in private["networks"].items() if not one.get("internal")} == {"public"}
    assert {name for name, one in plain["networks"].items() if not one.get("internal")} == {"public", "order", "payment", "mail"}
    assert {name for name, one in private["services"].items() if "public" in one["networks"]} == {"gateway"}


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.cluster.yaml")])
def test_every_container_is_limited(files: tuple[str, ...]) -> None:
    """Logs turn over; few capabilities or none, no new privileges, limits of memory and processes."""
    for name, one in _read(*files)["services"].items():
        assert one["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}, name
        assert one["cap_drop"] == ["ALL"], name
        assert set(one.get("cap_add", ())) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}, name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert one["mem_limit"], name
        assert one["pids_limit"] <= 1024, name
        if one["image"].startswith("sagapost-"):
            assert "cap_add" not in one, name


def test_only_databases_and_broker_may_write_their_roots() -> None:
    """Their images write configuration and sockets there; every other container of compose.yaml has a root that it can only read."""
    services = _read("compose.yaml")["services"]

    assert {name for name, one in services.items() if not one.get("read_only")} == {"order-db", "payment-db", "rabbitmq"}


def test_who_is_given_the_internal_secret() -> None:
    """The order service and its two callers; a container that was taken over elsewhere does not know it."""
    services = _read("compose.yaml")["services"]
    holders = {name for name, one in services.items() if "SAGAPOST_INTERNAL_SECRET" in one.get("environment", {})}

    assert holders == {"gateway", "order", "email"}
