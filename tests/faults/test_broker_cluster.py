"""A RabbitMQ cluster of three nodes under load: a leader is killed, hangs, and the majority is lost; orders go on, and nothing is.

SAGAPOST_LEADERS=20 kills as many leaders, one after the other, and SAGAPOST_HUNG_S=20 lets one hang for longer than the heartbeats.
"""

import asyncio
import functools
import http.client
import os
import pathlib
import signal
import statistics
import sys
import time
import uuid
from collections.abc import Generator, Mapping

import msgspec
import psycopg
import pytest
from faults import conftest
from faults import customers as buyers
from faults import stack as stacks
from integration import relay_kit, relay_lanes

from sagapost_chassis import topology
from sagapost_contracts import topology as contract
from sagapost_relay.blocks import Outcome
from sagapost_sandbox import broker_cluster, management, rabbitmq
from sagapost_sandbox.testing import polling, servers

LEADERS = int(os.environ.get("SAGAPOST_LEADERS", "1"))
HUNG_S = float(os.environ.get("SAGAPOST_HUNG_S", "8"))  # 20 is longer than the heartbeats after which both sides give a connection up
pytestmark = pytest.mark.timeout(240 + 60 * LEADERS)
MET = "met.without.a.leader"


class Led(msgspec.Struct):
    """What these tests read of a queue."""

    leader: str
    online: list[str]
    messages: int = 0
    messages_unacknowledged: int = 0
    consumers: int = 0


@pytest.fixture(scope="module")
def cluster(run_folder: pathlib.Path) -> Generator[broker_cluster.Cluster]:
    """Run three nodes, with the topology declared."""
    made = broker_cluster.Cluster(run_folder / f"cluster-{uuid.uuid4().hex[:6]}")
    try:
        made.start()
        asyncio.run(topology.declare(made.amqp_url()))
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory,
    cluster: broker_cluster.Cluster,
    database_server: servers.Databases,
    templates: Mapping[str, str],
) -> Generator[stacks.Stack]:
    """Run every service on the cluster."""
    with conftest.cloned(database_server, templates) as urls:
        made = stacks.make(tmp_path_factory.mktemp("cluster"), urls, cluster.amqp_url(), cluster.nodes[0])
        try:
            yield made.start_all()
        finally:
            made.stop()


def _queue(cluster: broker_cluster.Cluster, name: str = contract.PAYMENT_QUEUE) -> Led:
    """Say who leads a queue, payment's if no other is named, and who takes part."""
    alive = next(node for node in cluster.nodes if node.running())
    return msgspec.convert(management.request(alive.management, "GET", f"/api/queues/%2F/{name}"), Led)


def _leader(cluster: broker_cluster.Cluster) -> rabbitmq.Node:
    """Find the node that leads payment's queue."""
    name = _queue(cluster).leader
    return next(node for node in cluster.nodes if node.nodename == name)


def _complete(cluster: broker_cluster.Cluster, name: str = contract.PAYMENT_QUEUE) -> bool:
    """Tell whether no member of a queue is missing: whoever stops one before takes the majority.

    `rabbitmq-diagnostics check_if_node_is_quorum_critical` tells operators the same.
    """
    return len(_queue(cluster, name).online) == len(cluster.nodes)


def _paid(shop: stacks.Stack) -> int:
    with psycopg.connect(str(shop.known.order_database_url)) as conn:
        found = conn.execute("SELECT count(*) FROM saga_history WHERE event = 'PaymentProcessed'").fetchone()
    return int(found[0]) if found else 0


def _goes_on(shop: stacks.Stack, than: int) -> bool:
    return _paid(shop) > than


def _whole(shop: stacks.Stack, customers: buyers.Customers) -> None:
    for order in customers.bought:
        shop.ended(order.saga_id, deadline_s=90)
    shop.verified()


@pytest.mark.anyio
async def test_a_relay_whose_channel_met_a_queue_without_a_leader_goes_on(cluster: broker_cluster.Cluster) -> None:
    """RabbitMQ 3.10 nacks whatever such a channel publishes until the dead node is back; the relay goes on over a fresh one meanwhile."""
    node, other = cluster.nodes[0], cluster.nodes[1]
    async with relay_kit.channel(node.amqp_url()) as channel:  # whose node leads what it declares
        queue = await channel.declare_queue(
            MET, durable=True, arguments={"x-queue-type": "quorum", "x-queue-leader-locator": "client-local"}
        )
        await queue.bind(contract.EXCHANGE, MET)
    polling.eventually(functools.partial(_complete, cluster, MET), 60)
    desk, shard = relay_lanes.desk_with_a_shard()
    said: list[Outcome] = []

    async def confirmed() -> bool:
        said.extend(await relay_lanes.fly(desk, shard, [relay_lanes.row(len(said), MET)]))
        return said[-1] == Outcome.CONFIRMED

    async with relay_lanes.connected(other.amqp_url()) as desk.broker:
        node.kill()
        try:
            await polling.eventually(confirmed, 20)
        finally:
            await asyncio.to_thread(node.start)
    sys.stdout.write(f"\n{said.count(Outcome.NACKED)} of {len(said)} nacked until a fresh channel was confirmed\n")


def test_a_leader_that_dies_stops_payments_for_seconds_and_no_checkout(cluster: broker_cluster.Cluster, shop: stacks.Stack) -> None:
    """Another node leads, services find it, the dead node comes back and follows; every order is paid and told once."""
    customers = buyers.Customers(shop)
    gaps_s: list[float] = []
    for _ in range(LEADERS):
        with customers.buying():
            polling.eventually(functools.partial(customers.have, len(customers.bought) + 10), 60)
            polling.eventually(functools.partial(_goes_on, shop, _paid(shop)), 60)
            polling.eventually(functools.partial(_complete, cluster), 60)
            leader = _leader(cluster)
            leader.kill()
            killed, before = time.monotonic(), _paid(shop)
            try:
                polling.eventually(functools.partial(_goes_on, shop, before), 60)
                gaps_s.append(time.monotonic() - killed)
                polling.eventually(functools.partial(customers.have, len(customers.bought) + 10), 60)
            except AssertionError as exc:
                exc.add_note(f"{[round(gap_s, 2) for gap_s in gaps_s]} s so far; killed was {leader.nodename}")
                exc.add_note(repr(_queue(cluster)))
                leader.start()
                raise
        leader.start()
    sys.stdout.write(f"\n{LEADERS} leaders killed, {len(customers.bought)} orders; until the next payment: ")
    sys.stdout.write(f"median {statistics.median(gaps_s):.2f} s, longest {max(gaps_s):.2f} s\n")
    _whole(shop, customers)


def test_a_leader_that_hangs_is_given_up_and_loses_nothing(cluster: broker_cluster.Cluster, shop: stacks.Stack) -> None:
    """A node that answers nothing, with connections that stay open: checkouts go on, and so do payments before it wakes, or after."""
    customers = buyers.Customers(shop)
    with customers.buying():
        polling.eventually(functools.partial(customers.have, 10), 60)
        leader = _leader(cluster)
        assert leader.pid is not None
        os.kill(leader.pid, signal.SIGSTOP)
        stopped, before = time.monotonic(), _paid(shop)
        try:
            polling.eventually(functools.partial(_past, stopped + HUNG_S), HUNG_S + 10)
            during = _paid(shop) - before
        finally:
            os.kill(leader.pid, signal.SIGCONT)
        polling.eventually(functools.partial(_goes_on, shop, _paid(shop)), 60)
    sys.stdout.write(f"\na leader hung for {HUNG_S:.0f} s: {during} payments meanwhile, {len(customers.bought)} orders\n")
    _whole(shop, customers)


def test_without_a_majority_checkouts_are_taken_and_paid_when_it_is_back(cluster: broker_cluster.Cluster, shop: stacks.Stack) -> None:
    """Two of three nodes die: nothing can be confirmed, every checkout is answered 202 all the same, and ends when they return."""
    customers = buyers.Customers(shop)
    lost = cluster.nodes[1:]
    with customers.buying():
        polling.eventually(functools.partial(customers.have, 5), 60)
        for node in lost:
            node.kill()
        polling.eventually(functools.partial(customers.have, len(customers.bought) + 20), 60)
        for node in lost:
            node.start()
    polling.eventually(functools.partial(_answers, cluster), 60)
    _whole(shop, customers)


def _past(moment: float) -> bool:
    return time.monotonic() > moment


def _answers(cluster: broker_cluster.Cluster) -> bool:
    try:
        return all(management.answers(node.management) for node in cluster.nodes)
    except (OSError, http.client.HTTPException):
        return False
