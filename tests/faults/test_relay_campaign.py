"""Seeded faults against three relays: kill -9, SIGTERM, SIGSTOP past the lease, cut links, restarts of the broker and of PostgreSQL.

SAGAPOST_FAULTS=200 runs the long one, SEED=… repeats one, SAGAPOST_FAULTS_LEASE_S sets the lease.
"""

import pathlib
import sys

import pytest
from faults import relay_campaign

from sagapost_ops import migrations
from sagapost_sandbox.testing import servers

PLAN = relay_campaign.plan_of()
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120 + PLAN.faults * 10)]


async def test_the_relays_survive_a_campaign_of_faults(
    tmp_path: pathlib.Path, private_databases: servers.Databases, private_broker: servers.Broker
) -> None:
    """Nothing committed is lost, no aggregate's first deliveries change places, repetitions and take-overs stay within their bounds."""
    dsn = private_databases.create("payment_user", "payment_password", "payment")
    migrations.upgrade(dsn, "payment")
    replay = f"SEED={PLAN.seed} SAGAPOST_FAULTS={PLAN.faults} SAGAPOST_FAULTS_LEASE_S={PLAN.lease_s:g}"
    replay += " ./sagapost test tests/faults/test_relay_campaign.py"

    try:
        report = await relay_campaign.run(PLAN, tmp_path, private_databases, private_broker, dsn)
    except BaseException as exc:
        exc.add_note(f"to repeat it: {replay}")
        raise

    sys.stdout.write(f"\n{report.line}\n{report.history}\n")
    if report.problems:
        pytest.fail("\n".join((*report.problems, report.line, report.history, f"to repeat it: {replay}")), pytrace=False)
