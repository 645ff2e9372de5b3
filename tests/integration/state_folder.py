"""A state folder that says what a test has started, as `up` writes it, with the test's own process as its supervisor."""

import os
import pathlib

import pytest

from sagapost_ops import state, targets
from sagapost_sandbox import ports, processes


def write(home: pathlib.Path, where: targets.Targets, monkeypatch: pytest.MonkeyPatch | None = None, env: str = "development") -> None:
    """Write the state file; commands find it by SAGAPOST_STATE, which is set when `monkeypatch` is given.

    What `where` does not name becomes an address at which nobody listens.
    """
    supervisor = processes.identify(os.getpid())
    assert supervisor is not None
    closed = f"127.0.0.1:{ports.trial(1)[0]}"
    state.prepare(home)
    addresses = state.Addresses(
        gateway_url=where.gateway_url or f"http://{closed}",
        order_database_url=where.order_database_url or f"postgresql://nobody@{closed}/order_db",
        payment_database_url=where.payment_database_url or f"postgresql://nobody@{closed}/payment_db",
        amqp_url=where.amqp_url or f"amqp://nobody:nothing@{closed}/",
        management_url=where.management_url or f"http://{closed}",
        provider_url=where.provider_url or f"http://{closed}",
        mailbox_url=where.mailbox_url or f"http://{closed}",
    )
    state.write(home, state.State(supervisor=supervisor, phase="ready", port_offset=0, env=env, addresses=addresses))
    if monkeypatch is not None:
        monkeypatch.setenv("SAGAPOST_STATE", str(home))
