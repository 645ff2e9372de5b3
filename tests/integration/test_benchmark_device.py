"""The relay benchmark's device on a real broker: a device that has never shown a fault is no evidence that there was none."""

import contextlib
import importlib
import pathlib
from collections.abc import Callable, Iterator
from types import ModuleType

import pamqp.commands
import pytest

from sagapost_sandbox.testing import servers

ROOT = pathlib.Path(__file__).parents[2]
QUEUE = "device"
WAIT_S = 10.0
SMOKE_ROWS = 1000

Messages = list[tuple[int, int, int]]
Publish = Callable[[Messages], None]


@pytest.fixture(autouse=True)
def _checkout_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def publish(vhost: str, _checkout_on_path: None) -> Iterator[Publish]:
    """Give what publishes (sequence, aggregate, number) on an empty quorum queue, in exactly that order."""
    wire, stamps = _module("wire"), _module("stamps")
    properties = pamqp.commands.Basic.Properties(delivery_mode=2)
    with contextlib.closing(wire.Link(vhost)) as link:
        declare = pamqp.commands.Queue.Declare(queue=QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        link.call(declare, pamqp.commands.Queue.DeclareOk)

        def send(messages: Messages) -> None:
            frames = [wire.encode(stamps.body(*one, 300), exchange="", routing_key=QUEUE, properties=properties) for one in messages]
            link.socket.sendall(b"".join(frames))

        yield send


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.relay.{name}")


def test_the_device_counts_what_a_bad_publisher_did(publish: Publish, vhost: str) -> None:
    """Lost, doubled and inverted messages are each counted, and counted exactly; the good ones around them are not."""
    sink = _module("sink")
    messages = [(sequence, sequence % 5, sequence // 5) for sequence in range(200)]
    messages[40], messages[45] = messages[45], messages[40]  # one aggregate's neighbours change places: an inversion
    messages[101], messages[106] = messages[106], messages[101]
    # late doubles are no inversions; the device waits for the one behind them
    messages[-1:-1] = [messages[10], messages[10], messages[150]]
    del messages[77]

    with sink.Sink(sink.Order(url=vhost, queue=QUEUE)) as device:
        publish(messages)
        device.expect(199)
        complete = device.enough(WAIT_S)
        arrivals = device.stop()

    assert complete
    assert (arrivals.counts.received, arrivals.counts.distinct, arrivals.counts.duplicated) == (202, 199, 3)
    assert arrivals.counts.inversions == 2
    assert set(range(200)) - set(arrivals.sequences) == {77}
    assert arrivals.counts.first_s <= arrivals.counts.last_s


def test_the_device_is_not_satisfied_by_doubles(publish: Publish, vhost: str) -> None:
    """It waits for as many different messages as were asked for, not for as many deliveries."""
    sink = _module("sink")

    with sink.Sink(sink.Order(url=vhost, queue=QUEUE)) as device:
        device.expect(3)
        publish([(0, 0, 0), (1, 0, 1), (1, 0, 1), (0, 0, 0)])
        too_early = device.enough(0.5)
        publish([(2, 0, 2)])
        complete = device.enough(WAIT_S)

    assert not too_early
    assert complete


def test_a_drain_is_measured_with_the_real_relay(
    database_server: servers.Databases, broker: servers.Broker, tmp_path: pathlib.Path
) -> None:
    """From the filled outbox through the relay's process to the sink: all rows, once, in order, with the relay's costs."""
    world, benches, running, contenders, drain = (_module(n) for n in ("world", "bench", "running", "contenders", "measures.drain"))
    ours = contenders.SAGAPOST

    with contextlib.closing(world.World(tmp_path, database_server, broker)) as here:
        templates = {ours.name: running.prepare(ours, here, 300)}
        bench = benches.Bench(options=benches.Options(), world=here, contenders=(ours,), templates=templates, tell=lambda _: None)
        values = drain.once(bench, ours, SMOKE_ROWS)

    assert {key: values[key] for key in ("rows", "lost", "duplicated", "inversions")} == {
        "rows": SMOKE_ROWS,
        "lost": 0,
        "duplicated": 0,
        "inversions": 0,
    }
    assert values["per_s"] > 0
    assert values["resident_mib"] > 10
