"""The measuring device: a process that takes messages off a queue almost for free and says what came, when, and what was wrong.

It reads raw bytes and the times at which they came; what they mean is found out afterwards. It must not know who published.
"""

import array
import bisect
import multiprocessing
import multiprocessing.connection
import selectors
import signal
import time
from typing import Final, Self

import msgspec
import pamqp.commands

from benchmarks.relay import stamps, wire

BUFFER_BYTES: Final = 32 * 1024 * 1024  # about 40,000 messages of 300 bytes: a drain of 30,000 is parsed when it is over
START_S: Final = 15.0
STOP_S: Final = 60.0
_STAMP_BYTES: Final = len(stamps.MARK)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to consume; `pause_s` between two reads saves system calls where a millisecond of precision is enough."""

    url: str
    queue: str
    pause_s: float = 0.0


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What arrived. Times are CLOCK_MONOTONIC in seconds; an inversion is a first delivery behind a later one of its aggregate."""

    received: int
    distinct: int
    duplicated: int
    inversions: int
    first_s: float
    last_s: float
    in_first_read: int

    @property
    def per_s(self) -> float:
        """Messages after the first read per second from the first arrival to the last first delivery."""
        took_s = self.last_s - self.first_s
        return (self.distinct - self.in_first_read) / took_s if took_s > 0 else 0.0


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """The first delivery of each sequence, in order of arrival."""

    counts: Counts
    sequences: list[int]
    times_s: list[float]


class Recorder:
    """Bytes with the times at which they came, parsed a buffer at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._ends = array.array("Q")  # where each read ended in this buffer, and when it came
        self._times = array.array("d")
        self._counted_to = 0
        self._waiting = 0
        self.sequences = array.array("Q")
        self.aggregates = array.array("L")
        self.numbers = array.array("L")
        self.times = array.array("d")

    @property
    def count(self) -> int:
        """Messages so far, without parsing them."""
        return len(self.sequences) + self._waiting

    def space(self) -> memoryview:
        """Give where the next read may write."""
        if self._filled == BUFFER_BYTES:
            self.parse()
        return self._view[self._filled :]

    def came(self, size: int, at_s: float) -> None:
        """Note that `size` bytes were written there."""
        self._filled += size
        self._ends.append(self._filled)
        self._times.append(at_s)
        self._waiting += self._buffer.count(stamps.MARK, self._counted_to, self._filled)
        self._counted_to = max(self._counted_to, self._filled - _STAMP_BYTES + 1)

    def parse(self) -> None:
        """Read the buffer's messages, and keep what is not whole yet."""
        end = 0
        for found in stamps.ARRIVED.finditer(self._buffer, 0, self._filled):
            sequence, aggregate, number = found.groups()
            end = found.end()
            self.sequences.append(int(sequence))
            self.aggregates.append(int(aggregate))
            self.numbers.append(int(number))
            self.times.append(self._times[bisect.bisect_left(self._ends, end)])
        rest = bytes(self._view[end : self._filled])
        # between two messages there are frames without a mark: what ends before the last few bytes is of no use any more
        rest = rest[-stamps.LARGEST_BYTES * 2 :]
        last_s = self._times[-1] if self._times else 0.0
        self._view[: len(rest)] = rest
        self._filled = len(rest)
        self._ends, self._times = array.array("Q", [len(rest)]), array.array("d", [last_s])
        self._waiting = rest.count(stamps.MARK)
        self._counted_to = max(0, len(rest) - _STAMP_BYTES + 1)


def count(recorder: Recorder) -> Arrivals:
    """Find the first deliveries, and what came twice or in the wrong order."""
    seen: set[int] = set()
    highest: dict[int, int] = {}
    sequences: list[int] = []
    times_s: list[float] = []
    inversions = 0
    for sequence, aggregate, number, at_s in zip(recorder.sequences, recorder.aggregates, recorder.numbers, recorder.times, strict=True):
        if sequence in seen:
            continue
        seen.add(sequence)
        sequences.append(sequence)
        times_s.append(at_s)
        if number < highest.get(aggregate, -1):
            inversions += 1
        else:
            highest[aggregate] = number
    received = len(recorder.sequences)
    return Arrivals(
        counts=Counts(
            received=received,
            distinct=len(seen),
            duplicated=received - len(seen),
            inversions=inversions,
            first_s=times_s[0] if times_s else 0.0,
            last_s=times_s[-1] if times_s else 0.0,
            in_first_read=sum(1 for at_s in times_s if at_s == times_s[0]),
        ),
        sequences=sequences,
        times_s=times_s,
    )


class Sink:
    """The process, seen from the one that started it."""

    def __init__(self, order: Order) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, order), daemon=True, name=f"sink of {order.queue}")
        self._process.start()
        theirs.close()
        self._wait("ready", START_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def first(self, timeout_s: float) -> bool:
        """Wait for the first message; False when none came."""
        return self._wait("first", timeout_s) is not None

    def expect(self, distinct: int) -> None:
        """Ask to be told when this many different messages have come."""
        self._pipe.send(distinct)

    def enough(self, timeout_s: float) -> bool:
        """Wait until they have; False when they have not."""
        return self._wait("enough", timeout_s) is not None

    def stop(self) -> Arrivals:
        """End it and give what it has found."""
        self._pipe.send(None)
        found = self._wait("result", STOP_S)
        if found is None:
            raise wire.WireError("the sink did not report")
        return msgspec.msgpack.decode(found, type=Arrivals)

    def _wait(self, kind: str, timeout_s: float) -> bytes | None:
        deadline = time.monotonic() + timeout_s
        while self._pipe.poll(max(0.0, deadline - time.monotonic())):
            found, content = self._pipe.recv()
            if found == "failed":
                raise wire.WireError(f"the sink ended: {content}")
            if found == kind:
                return bytes(content)
        return None


def _run(pipe: multiprocessing.connection.Connection, order: Order) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes when its parent says so
    try:
        _consume(pipe, order)
    except (OSError, wire.WireError) as exc:
        pipe.send(("failed", f"{type(exc).__name__}: {exc}"))


def _consume(pipe: multiprocessing.connection.Connection, order: Order) -> None:
    link = wire.Link(order.url)
    consume = pamqp.commands.Basic.Consume(queue=order.queue, consumer_tag="sink", no_ack=True)
    link.call(consume, pamqp.commands.Basic.ConsumeOk)
    recorder, wanted, look_at = Recorder(), 0, 0
    recorder.space()[: len(link.left)] = link.left
    recorder.came(len(link.left), time.monotonic())
    pipe.send(("ready", b""))
    with selectors.DefaultSelector() as selector:
        selector.register(link.socket, selectors.EVENT_READ)
        selector.register(pipe, selectors.EVENT_READ)
        first = False
        while True:
            for key, _ in selector.select():
                if key.fileobj is link.socket:
                    _read(link, recorder)
                elif (asked := pipe.recv()) is None:
                    recorder.parse()
                    pipe.send(("result", msgspec.msgpack.encode(count(recorder))))
                    return
                else:
                    wanted = look_at = int(asked)
            if not first and recorder.count:
                first = True
                pipe.send(("first", b""))
            if wanted and recorder.count >= look_at:
                missing = _missing(recorder, wanted)
                look_at = recorder.count + missing  # some came twice: look again when as many more are there
                if missing == 0:
                    wanted = 0
                    pipe.send(("enough", b""))
            if order.pause_s:
                time.sleep(order.pause_s)


def _read(link: wire.Link, recorder: Recorder) -> None:
    size = link.socket.recv_into(recorder.space())
    recorder.came(size, time.monotonic())
    if size == 0:
        raise wire.WireError("the broker closed the sink's connection")


def _missing(recorder: Recorder, wanted: int) -> int:
    recorder.parse()
    return max(0, wanted - len(set(recorder.sequences)))
