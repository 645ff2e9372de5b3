"""`topology declare`, `check` and `show`: whatever differs is named for what it is, and mended where that is safe."""

import asyncio
import json
from typing import cast

import aio_pika
import pytest
from integration import topology_kit

from sagapost_chassis import amqp
from sagapost_contracts import topology
from sagapost_ops.topology import found
from sagapost_sandbox import management
from sagapost_sandbox.testing import polling, servers

pytestmark = pytest.mark.anyio

USERS = topology_kit.USERS


def test_a_topology_as_declared_has_no_drift(broker: servers.Broker, vhost: str) -> None:
    """Declared twice with its users, checked with its users: nothing differs."""
    declared = [topology_kit.command(broker, vhost, "declare", "--users", "--json") for _ in range(2)]

    checked = topology_kit.command(broker, vhost, "check", "--users", "--json")

    assert [json.loads(done.stdout) for done in declared] == [{"queues": len(topology.queues()), "users": len(USERS)}] * 2
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout) == {"ok": True, "only_names": False, "drift": []}


def test_show_names_everything_without_a_broker(broker: servers.Broker) -> None:
    """The JSON has every exchange, queue with arguments and bindings, and user; the table has a line for each."""
    shown, table = (topology_kit.command(broker, "amqp://nobody:nothing@127.0.0.1:1/", "show", *how) for how in (("--json",), ()))

    found = json.loads(shown.stdout)
    assert [exchange["name"] for exchange in found["exchanges"]] == [
        "ecommerce_events",
        "ecommerce_events.dlx",
        *(f"{queue}.{kind}" for queue in topology.WORK_QUEUES for kind in ("retry", "dlx")),
    ]
    assert {queue["name"]: queue["arguments"] for queue in found["queues"]} == {q.name: q.arguments for q in topology.queues()}
    assert {user["name"]: user["configure"] for user in found["users"]} == dict.fromkeys(USERS, "^$")
    assert all(queue.name in table.stdout for queue in topology.queues())
    assert "ecommerce_events order.payment.cancel_requested" in table.stdout


async def test_each_drift_is_named_for_what_it_is(broker: servers.Broker, vhost: str) -> None:
    """Missing, another type, other, missing and surplus arguments, a missing binding, one too many: one sentence each, exit code 1."""
    retry, dead = topology.retry_queue(topology.ORDER_QUEUE, 5), topology.dead_letter_queue(topology.ORDER_QUEUE)
    async with topology_kit.connected(vhost) as connection:
        channel = await connection.channel()
        payment, email = await channel.get_queue(topology.PAYMENT_QUEUE), await channel.get_queue(topology.EMAIL_QUEUE)
        await payment.unbind(topology.EXCHANGE, "order.order.created")
        await email.bind(topology.EXCHANGE, "email.#")
        for name in (topology.DEAD_LETTER_EXCHANGE, topology.ORDER_QUEUE, retry, dead):
            await (channel.exchange_delete(name) if name == topology.DEAD_LETTER_EXCHANGE else channel.queue_delete(name))
        await channel.declare_exchange(topology.DEAD_LETTER_EXCHANGE, "fanout", durable=True)
        await channel.declare_queue(retry, durable=True, arguments={"x-queue-type": "quorum", "x-message-ttl": 2000, "x-max-length": 9})
        await channel.declare_queue(dead, durable=True)

    done = await asyncio.to_thread(topology_kit.command, broker, vhost, "check", "--json")

    said = [line["says"] for line in json.loads(done.stdout)["drift"]]
    assert done.returncode == 1
    assert said == [
        "ecommerce_events.dlx is a fanout exchange instead of a direct exchange",
        "order_updates_queue is not there",
        f"{retry} has no x-dead-letter-exchange, '' is wanted",
        f"{retry} has no x-dead-letter-routing-key, 'order_updates_queue' is wanted",
        f"{retry} has no x-dead-letter-strategy, 'at-least-once' is wanted",
        f"{retry} has x-max-length 9, which is not wanted",
        f"{retry} has x-message-ttl 2000 instead of 5000",
        f"{retry} has no x-overflow, 'reject-publish' is wanted",
        f"{dead} is a classic queue instead of a quorum queue",
        f"{dead} has no x-delivery-limit, 1000000 is wanted",
        "payment_service_queue is not bound to ecommerce_events with order.order.created",
        "payment_service_queue.dlq is not bound to ecommerce_events.dlx with payment_service_queue",
        "email_service_queue is bound to ecommerce_events with email.#, which is not wanted",
        "email_service_queue.dlq is not bound to ecommerce_events.dlx with email_service_queue",
        "order_updates_queue.retry.5s is not bound to order_updates_queue.retry with 5s",
        "order_updates_queue.dlq is not bound to ecommerce_events.dlx with order_updates_queue",
        "order_updates_queue.dlq is not bound to order_updates_queue.dlx with order_updates_queue",
    ]
    assert "the broker differs in 17 places" in done.stderr
    assert all(way in done.stderr for way in ("topology declare", "unbind it", "delete it"))


async def test_a_users_rights_that_differ_are_named_and_mended(broker: servers.Broker, vhost: str) -> None:
    """A right too many, routing keys that nobody asked for or that are free, a tag: `check --users` says so, `declare --users` mends it."""
    name, api = found.vhost_of(vhost), broker.management
    topology_kit.make_users(broker, vhost)
    management.permit(api, name, "order", management.Rights(configure=".*", write=".*", read=topology.USERS[0].read))
    management.permit_topics(api, name, "email", {})
    management.permit_topics(api, name, "relay-order", {topology.EXCHANGE: "^order"})
    management.request(api, "DELETE", f"/api/permissions/{name}/relay-payment")

    before = await asyncio.to_thread(topology_kit.command, broker, vhost, "check", "--users", "--json")
    mended = await asyncio.to_thread(topology_kit.command, broker, vhost, "declare", "--users")
    after = await asyncio.to_thread(topology_kit.command, broker, vhost, "check", "--users")

    assert [line["says"] for line in json.loads(before.stdout)["drift"]] == [
        "user order may configure “.*” instead of “^$”",
        f"user order may write “.*” instead of “{topology.USERS[0].write}”",
        r"user email is not held to the routing keys “^email\.email\.[a-z_]+$” on ecommerce_events",
        r"user relay-order is not held to the routing keys “^order\..*” on ecommerce_events",
        "user relay-order is held to the routing keys “^order” on ecommerce_events, which is not wanted",
        f"user relay-payment may not use the virtual host {name}",
    ]
    assert (before.returncode, mended.returncode, after.returncode) == (1, 0, 0), after.stderr


async def test_older_consumers_keep_their_rights_until_only_new_ones_are_connected(broker: servers.Broker, vhost: str) -> None:
    """While a deployment rolls they can set messages aside; afterwards the next call takes the rights away, and gives none back."""
    name, api = found.vhost_of(vhost), broker.management
    urls = topology_kit.make_users(broker, vhost)
    for user in topology.USERS:
        if user.older_write:
            write = topology.FIRST_WRITES[user.name]
            management.permit(api, name, user.name, management.Rights(configure=user.configure, write=write, read=user.read))

    async def declare(*how: str) -> list[str]:
        done = await asyncio.to_thread(topology_kit.command, broker, vhost, "declare", "--users", "--json", *how)
        return list(json.loads(done.stdout).get("older_rights", []))

    new = await amqp.connect(urls["order"], "a new consumer")
    async with new, topology_kit.connected(urls["payment"]) as old:
        await polling.eventually(lambda: _are_listed(api, name, 2), 30)
        while_rolling = await declare()
        checked = await asyncio.to_thread(topology_kit.command, broker, vhost, "check", "--users")
        await old.close()
        await polling.eventually(lambda: _are_listed(api, name, 1), 30)
        afterwards = await declare()
    async with topology_kit.connected(urls["payment"]):
        await polling.eventually(lambda: _are_listed(api, name, 1), 30)
        once_more, for_the_way_back = await declare(), await declare("--older-services")

    assert while_rolling == ["payment"]
    assert "user payment may write" in checked.stdout
    assert "it reaches every queue" in checked.stdout
    assert checked.returncode == 1
    assert (afterwards, once_more, for_the_way_back) == ([], [], ["email", "order", "payment"])


async def _are_listed(api: management.Management, vhost: str, number: int) -> bool:
    listed = await asyncio.to_thread(management.request, api, "GET", f"/api/vhosts/{vhost}/connections")
    return len([one for one in cast("list[dict[str, object]]", listed) if one.get("user")]) == number


def test_without_the_management_interface_only_names_are_checked(broker: servers.Broker, vhost: str) -> None:
    """The check says that it saw no arguments; users it refuses to check, in one sentence, exit code 2."""
    names, users = (topology_kit.command(broker, vhost, "check", *how, SAGAPOST_MANAGEMENT_URL="") for how in ((), ("--users",)))

    assert (names.returncode, users.returncode) == (0, 2)
    assert "Set SAGAPOST_MANAGEMENT_URL to check arguments and bindings too" in names.stdout
    assert "SAGAPOST_MANAGEMENT_URL is not set" in users.stderr


async def test_a_dead_letter_is_there_however_often_it_was_looked_at(vhost: str) -> None:
    """Each look takes it and puts it back, which newer brokers count and by default end after twenty: the queue's own limit is far off."""
    dead = topology.dead_letter_queue(topology.ORDER_QUEUE)
    async with topology_kit.connected(vhost) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(topology.DEAD_LETTER_EXCHANGE, ensure=False)
        await exchange.publish(aio_pika.Message(b"{}"), topology.ORDER_QUEUE)
        queue = await channel.get_queue(dead)

        for _ in range(30):
            letter = await queue.get(timeout=5)
            await letter.nack(requeue=True)

        assert (await queue.get(timeout=5)).body == b"{}"
