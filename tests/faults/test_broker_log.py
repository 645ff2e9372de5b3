"""What RabbitMQ writes when one of its processes crashes with a message in its hands."""

from integration import relay_lanes

from sagapost_sandbox import rabbitmq
from sagapost_sandbox.testing import containers, polling, servers

_ADDRESS = "crash-canary@customers.example.com"


def _log(node: servers.Broker) -> str:
    if isinstance(node, containers.ContainerBroker):
        return "".join(part.decode("utf-8", "replace") for part in node.container.get_logs())
    assert isinstance(node, rabbitmq.Node)
    return node.log.read_text(encoding="utf-8", errors="replace")


def test_a_crash_in_the_broker_writes_no_address_into_its_log(broker: servers.Broker) -> None:
    """Neither a process of the library, nor a plain one, leaves what it held in the log; RabbitMQ's own lines are there."""
    crash = f'error({{crash, <<"{_ADDRESS}">>}})'

    relay_lanes.rabbitmqctl(broker, "eval", f'proc_lib:spawn(fun() -> put(message, <<"{_ADDRESS}">>), {crash} end).')
    relay_lanes.rabbitmqctl(broker, "eval", f"spawn(fun() -> {crash} end).")
    relay_lanes.rabbitmqctl(broker, "eval", 'logger:notice("behind the crashes", [], #{domain => [rabbitmq]}).')

    polling.eventually(lambda: "behind the crashes" in _log(broker))
    assert _ADDRESS not in _log(broker)
