"""The layout of a stack: ports, order and variables, without starting anything."""

import os
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from e2e import shop_stack

from sagapost_contracts import topology as words
from sagapost_ops import board, plan, reports, state, supervisor
from sagapost_ops.topology import accounts
from sagapost_sandbox import ports as tcp
from sagapost_sandbox import processes

TAKEN = {5433, 5672, 4369, 1025}


def _next_free(port: int, avoid: Collection[int]) -> int:
    return next(candidate for candidate in range(port, 65536) if candidate not in TAKEN and candidate not in avoid)


@pytest.mark.parametrize("offset", [0, 1, 100, plan.HIGHEST_OFFSET])
def test_ports_are_distinct_and_public_ones_never_move(offset: int) -> None:
    """Whatever is taken, the ports people rely on are the documented ones plus the offset, and no two are the same."""
    options = plan.Options(port_offset=offset, workers=8)

    ports = plan.choose_ports(options, _next_free)

    assert {name: ports[name] for name in plan.PUBLIC} == {name: port + offset for name, port in plan.PUBLIC.items()}
    assert len(set(ports.values())) == len(ports)
    assert max(ports.values()) < 65536
    assert not TAKEN & set(ports.values())


def test_stacks_that_tests_start_share_no_port() -> None:
    """Neither two of them, nor one and the stack of offset 0; one port of each lies among those for trials, and none above them."""
    stacks = [plan.choose_ports(plan.Options(port_offset=offset), _free) for offset in (0, *shop_stack.OFFSETS)]

    taken = [port for ports in stacks for port in ports.values()]

    assert len(set(taken)) == len(taken)
    assert max(taken) < tcp.TRIAL_RANGE[1]
    assert all(port < tcp.TRIAL_RANGE[0] for ports in stacks for name, port in ports.items() if name != "distribution")


def _free(port: int, avoid: Collection[int]) -> int:
    return next(candidate for candidate in range(port, 65536) if candidate not in avoid)


def test_databases_broker_and_mail_move_to_the_next_free_port() -> None:
    """A taken private port moves by itself, and the services are told the new one."""
    ports = plan.choose_ports(plan.Options(), _next_free)

    made = plan.make(plan.Options(), ports, Path("/home/of/stack"))

    variables = {unit.name: unit.environ for unit in made.units}
    assert ports["order-db"] == 5434  # 5433 is taken
    assert ports["payment-db"] == 5435  # and 5434 is the other one's now
    assert variables["order"]["SAGAPOST_DATABASE_URL"] == "postgresql://order_service:order_service_password@127.0.0.1:5434/order_db"
    assert (
        variables["payment"]["SAGAPOST_DATABASE_URL"] == "postgresql://payment_service:payment_service_password@127.0.0.1:5435/payment_db"
    )
    assert variables["email"]["SAGAPOST_SMTP_PORT"] == variables["mailbox"]["SAGAPOST_SMTP_PORT"] == "1026"
    assert variables["email"]["SAGAPOST_ORDER_URL"] == variables["gateway"]["SAGAPOST_ORDER_URL"]
    assert all(variables[name]["SAGAPOST_AMQP_URL"].endswith("@127.0.0.1:5673/") for name in ("order", "payment", "email", "relay-order"))


def test_each_service_has_a_user_of_the_broker_of_its_own() -> None:
    """No service has the operator's user; whoever declares makes the users with the passwords that the services have."""
    options = plan.Options(workers=2)

    made = plan.make(options, plan.choose_ports(options, _next_free), Path("/home/of/stack"))

    urls = {unit.name: urlsplit(unit.environ["SAGAPOST_AMQP_URL"]) for unit in made.units if "SAGAPOST_AMQP_URL" in unit.environ}
    declaring = next(unit for unit in made.units if unit.name == "topology")
    assert {name.removesuffix("-2"): url.username for name, url in urls.items() if name != "topology"} == {
        user.name: user.name for user in words.USERS
    }
    assert urls["topology"].username == plan.BROKER_USER[0]
    assert accounts.passwords(declaring.environ) == {user.name: urls[user.name].password for user in words.USERS}
    assert "--users" in declaring.arguments
    assert all("topology" in unit.requires for unit in made.units if unit.name in urls and unit.how == "program")


def test_more_workers_are_more_processes_of_payment_email_and_relays() -> None:
    """Each further worker has the variables of the first, and ports of its own."""
    options = plan.Options(workers=3)

    made = plan.make(options, plan.choose_ports(options, _next_free), Path("/home/of/stack"))

    units = {unit.name: unit for unit in made.units}
    own = {"SAGAPOST_PORT", "SAGAPOST_METRICS_PORT"}
    assert {f"{name}{suffix}" for name in plan.SCALED for suffix in ("", "-2", "-3")} <= set(units)
    assert units["relay-payment-3"].environ["SAGAPOST_DATABASE_URL"] == units["relay-payment"].environ["SAGAPOST_DATABASE_URL"]
    assert units["payment-3"].arguments == units["payment"].arguments
    shared = {name: value for name, value in units["payment-3"].environ.items() if name not in own}
    assert shared == {name: value for name, value in units["payment"].environ.items() if name not in own}
    assert units["payment-3"].port != units["payment"].port


def test_whatever_is_required_is_there_and_stops_later() -> None:
    """A unit stops before what it needs does."""
    made = plan.make(plan.Options(), plan.choose_ports(plan.Options(), _next_free), Path("/home/of/stack"))

    stages = {unit.name: unit.stage for unit in made.units}
    assert all(stages[name] <= unit.stage for unit in made.units for name in unit.requires)
    assert stages["gateway"] > stages["order"] > stages["provider"] > stages["order-db"]


def test_what_can_be_replaced_listens_on_every_port_of_its_own() -> None:
    """The sockets of a service that are kept while its processes change are those of its variables; what belongs to others has none."""
    ports = plan.choose_ports(plan.Options(workers=2), _next_free)

    made = plan.make(plan.Options(workers=2), ports, Path("/home/of/stack"))

    held = {unit.name: unit.listens for unit in made.units if unit.listens}
    assert held.keys() == {"order", "gateway", *plan.SCALED, *(f"{name}-2" for name in plan.SCALED)}
    assert held["gateway"] == (ports["gateway"], ports["page"], ports["gateway-metrics"])
    assert held["email"] == (ports["email"], ports["email-metrics"])
    assert len({port for several in held.values() for port in several}) == sum(len(several) for several in held.values())


def test_delays_are_made_by_the_outside_world() -> None:
    """The delays of payment and mail are the provider's and the mailbox's; the services know nothing of them."""
    options = plan.Options(payment_delay_s=0.25, email_delay_s=3)

    made = plan.make(options, plan.choose_ports(options, _next_free), Path("/home/of/stack"))

    delayed = {unit.name: value for unit in made.units for name, value in unit.environ.items() if "DELAY" in name}
    assert delayed == {"provider": "0.25", "mailbox": "3"}


def test_restarts_back_off_from_a_fifth_of_a_second_to_five() -> None:
    """A unit that keeps dying is started ever more rarely, but at least every five seconds."""
    waits = [supervisor.backoff_s(failures) for failures in range(1, 12)]

    assert waits[0] == pytest.approx(0.2)
    assert waits == sorted(waits)
    assert max(waits) == pytest.approx(5.0)


def test_each_process_has_a_metrics_address_that_prometheus_can_be_told(tmp_path: Path) -> None:
    """The state file has the port of every process of ours, replicas too; service discovery names service and process."""
    options = plan.Options(workers=2)
    made = plan.make(options, plan.choose_ports(options, _next_free), tmp_path)
    supervisor = processes.identify(os.getpid())
    assert supervisor is not None

    board.Board(tmp_path, made, dict.fromkeys(("postgres", "rabbitmq", "smtp", "http", "health"), "1"), supervisor)

    found = state.read(tmp_path)
    assert found is not None
    targets = {one.labels["process"]: one for one in reports.discovery(found)}
    assert targets.keys() == {*plan.MEASURED, *(f"{name}-2" for name in plan.SCALED)}
    assert targets["payment-2"].labels["service"] == "payment"
    assert targets["gateway"].targets == (f"127.0.0.1:{made.ports['gateway-metrics']}",)
    assert len({one.targets for one in targets.values()}) == len(targets)
