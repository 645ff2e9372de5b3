"""What the gateway does under attack and under ten times its load: a good client's p99 beside a crowd, goodput, memory, recovery.

Run it by itself, it starts PostgreSQL, order service and gateway of its own: .venv/bin/python benchmarks/edge.py overload --seconds 60
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Generator
from typing import Final

import uvloop

from sagapost_ops import migrations
from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, servers, services

CART: Final = b'{"user_id": 1, "user_email": "test@example.com", "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}'
HEAD: Final = b"Host: localhost\r\nContent-Type: application/json\r\n"
CHECKOUT: Final = b"POST /api/checkout HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(CART) + CART
ATTEMPTS: Final = (
    b"POST /api/checkout HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /api/checkout HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"POST /api/checkout HTTP/1.1\r\n" + HEAD + b"Content-Encoding: gzip\r\nContent-Length: 900000000\r\n\r\n" + b"\x1f\x8b" + b"x" * 60000,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40000,
)


class Line(asyncio.Protocol):
    """One connection that sends prepared bytes and reads one answer after the other; it opens anew when it is closed."""

    def __init__(self, port: int, done: Callable[["Line", int, float], None]) -> None:
        self._port, self._done = port, done
        self._transport: asyncio.Transport | None = None
        self._buffer, self._sent_s = b"", 0.0
        self.busy = True

    async def open(self) -> "Line":
        """Connect; ready for a request afterwards."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        self._buffer, self.busy = b"", False
        return self

    def send(self, request: bytes) -> None:
        """Send one request."""
        self.busy, self._sent_s = True, time.perf_counter()
        if self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read on until the answer is whole."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0):
            self._buffer, self.busy = b"", False
            self._done(self, int(head[9:12]), time.perf_counter() - self._sent_s)

    def connection_lost(self, _: Exception | None) -> None:
        """Tell of an answer that will not come, and open anew."""
        with contextlib.suppress(RuntimeError):  # the loop is closing
            if self.busy and self._sent_s:
                self._done(self, 0, time.perf_counter() - self._sent_s)
            self.busy = True
            asyncio.get_running_loop().create_task(self._again())

    def close(self) -> None:
        """Close for good."""
        self._sent_s, self._port = 0.0, 0
        if self._transport is not None:
            self._transport.abort()

    async def _again(self) -> None:
        while self._port:
            with contextlib.suppress(OSError):
                await self.open()
                return
            await asyncio.sleep(0.1)


class Load:
    """Requests over many lines, and what became of them: (second of the answer, status, how long it took)."""

    def __init__(self, port: int, lines: int) -> None:
        self._port, self._count = port, lines
        self.answers: list[tuple[float, int, float]] = []
        self.held_back = 0
        self._lines: list[Line] = []
        self._free: collections.deque[Line] = collections.deque()
        self._keep_going = False

    async def open(self) -> None:
        """Open every line."""
        for _ in range(self._count):
            self._lines.append(await Line(self._port, self._note).open())
        self._free.extend(self._lines)

    def close(self) -> None:
        """Close every line."""
        for line in self._lines:
            line.close()

    def _note(self, line: Line, status: int, took_s: float) -> None:
        self.answers.append((time.perf_counter(), status, took_s))
        if self._keep_going and not line.busy:
            line.send(CHECKOUT)
        else:
            self._free.append(line)

    async def closed(self, seconds: float, lines: int) -> float:
        """Let each of `lines` send the next request at once behind its answer; gives the accepted a second."""
        self._keep_going, before, began = True, len(self.answers), time.perf_counter()
        for line in [line for line in self._free if not line.busy][:lines]:  # a line that is being opened anew would never answer
            self._free.remove(line)
            line.send(CHECKOUT)
        await asyncio.sleep(seconds)
        self._keep_going, took_s = False, time.perf_counter() - began
        accepted = sum(status == 202 for _, status, _ in self.answers[before:])
        await polling.eventually(self._all_free, 20)
        return accepted / took_s

    async def _all_free(self) -> bool:
        return len(self._free) >= self._count - 1

    async def offered(self, seconds: float, rate: float) -> None:
        """Send `rate` requests a second, whatever becomes of them; those for which no line is free are held back and counted."""
        began, sent = time.perf_counter(), 0
        while (now := time.perf_counter() - began) < seconds:
            due = int(now * rate) - sent
            sent += due
            for nth in range(due):
                if not self._free:
                    self.held_back += due - nth
                    break
                line = self._free.popleft()
                if line.busy:  # being opened anew
                    self._free.append(line)
                    self.held_back += 1
                else:
                    line.send(CHECKOUT)
            await asyncio.sleep(0.002)


async def _hostile(port: int, idle: int, slow: int) -> None:
    """Hold idle connections, trickle headers and bodies, and try to smuggle, all for ever."""
    dice = random.SystemRandom()

    async def hold(first: bytes, drip: bytes) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(first)
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    while not reader.at_eof():
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(1 if drip else 60):
                                await reader.read(4096)
                        writer.write(drip)
                writer.transport.abort()
            await asyncio.sleep(dice.uniform(0.1, 1))

    async def attempt(number: int) -> None:
        while True:
            await hold_once(ATTEMPTS[number % len(ATTEMPTS)])
            await asyncio.sleep(dice.uniform(0.2, 0.6))

    async def hold_once(request: bytes) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            await reader.read(65536)
            writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(idle):
            group.create_task(hold(b"", b""))
        for _ in range(slow):
            group.create_task(hold(b"GET /api/products HTTP/1.1\r\nHost: localhost\r\nX: ", b"x"))
            group.create_task(hold(b"POST /api/checkout HTTP/1.1\r\n" + HEAD + b"Content-Length: 900\r\n\r\n", b" "))
        for number in range(12):
            group.create_task(attempt(number))


def _crowd(port: int, idle: int, slow: int) -> None:
    uvloop.run(_hostile(port, idle, slow))


async def _p99_ms(port: int, seconds: float, rate: float) -> float:
    load = Load(port, 20)
    await load.open()
    await load.offered(seconds, rate)
    await asyncio.sleep(0.5)
    load.close()
    if others := collections.Counter(status for _, status, _ in load.answers if status != 202):
        sys.stderr.write(f"not all were accepted: {dict(others)}\n")
    return statistics.quantiles([took * 1000 for _, _, took in load.answers], n=100)[98]


async def crowd(gateway: services.Service, given: argparse.Namespace) -> dict[str, object]:
    """Measure a good client's p99 alone and beside the crowd, in turns."""
    found: dict[bool, list[float]] = {False: [], True: []}
    held: list[int] = []
    for pair in range(-1, given.pairs):  # the first warms up
        for beside in (False, True) if pair % 2 else (True, False):
            process = multiprocessing.get_context("spawn").Process(target=_crowd, args=(gateway.port, given.idle, given.slow))
            if beside:
                process.start()
                await polling.eventually(lambda: _holds(gateway, given.idle), 60)
            p99 = await _p99_ms(gateway.port, given.seconds, given.rate)
            if beside:
                held.append(_connections(gateway))
                process.kill()
                process.join()
            await asyncio.sleep(1)
            sys.stderr.write(f"pair {pair + 1}/{given.pairs}, crowd {beside}: p99 {p99:.1f} ms, RSS {_rss_mb(gateway):.0f} MB\n")
            if pair >= 0:
                found[beside].append(round(p99, 2))
    medians = [statistics.median(found[beside]) for beside in (False, True)]
    return {"p99_ms_alone": found[False], "p99_ms_beside": found[True], "medians": medians, "ratio": medians[1] / medians[0], "held": held}


async def overload(gateway: services.Service, order: services.Service, given: argparse.Namespace) -> dict[str, object]:
    """Find the peak, offer a multiple of it, and watch goodput, memory and recovery."""
    load = Load(gateway.port, given.lines)
    await load.open()
    await load.closed(3, 16)
    peaks = {lines: round(await load.closed(given.peak_seconds, lines)) for lines in (8, 16, 32, 64)}
    peak = max(peaks.values())
    pairs = [await _pair(load, given, max(peaks, key=lambda lines: peaks[lines]), peak) for _ in range(given.pairs)]
    memory = {"before": (_rss_mb(gateway), _rss_mb(order))}
    load.answers.clear()
    watch = asyncio.create_task(_watch(gateway, order, memory))
    began = time.perf_counter()
    await load.offered(given.seconds, given.times * peak)
    ended = time.perf_counter()
    during = [answer for answer in load.answers if answer[0] <= ended]
    await load.offered(12, 0.5 * peak)
    watch.cancel()
    await asyncio.sleep(1)
    memory["after"] = (_rss_mb(gateway), _rss_mb(order))
    after = [answer for answer in load.answers if answer[0] > ended]
    refused_s = max((at - ended for at, status, _ in after if status != 202), default=0.0)
    good = [took for _, status, took in during if status == 202]
    load.close()
    return {
        "peaks_per_s": peaks,
        "pairs_peak_goodput_per_s": pairs,
        "pairs_ratio_of_medians": round(statistics.median(good for _, good in pairs) / statistics.median(peak for peak, _ in pairs), 3),
        "offered_per_s": given.times * peak,
        "answered_per_s": round(len(during) / (ended - began)),
        "held_back": load.held_back,
        "goodput_per_s": round(len(good) / (ended - began)),
        "goodput_ratio": round(len(good) / (ended - began) / peak, 3),
        "statuses": dict(collections.Counter(status for _, status, _ in during)),
        "accepted_ms": [round(value * 1000) for value in (statistics.median(good), statistics.quantiles(good, n=100)[98], max(good))],
        "rss_mb_gateway_order": memory,
        "last_refusal_after_s": round(refused_s, 2),
        "generator_cpu_s": round(time.process_time(), 1),
    }


async def _pair(load: Load, given: argparse.Namespace, lines: int, peak: float) -> tuple[int, int]:
    """Measure the peak and the goodput of an overload one after the other: these machines change their speed within a minute."""
    best = await load.closed(given.peak_seconds, lines)
    load.answers.clear()
    await load.offered(given.peak_seconds, given.times * peak)
    good = sum(status == 202 for _, status, _ in load.answers) / given.peak_seconds
    await asyncio.sleep(1.5)  # what was held back is answered
    return round(best), round(good)


async def _watch(gateway: services.Service, order: services.Service, memory: dict[str, tuple[float, float]]) -> None:
    for second in itertools.count(0, 10):
        memory[f"{second} s"] = (_rss_mb(gateway), _rss_mb(order))
        await asyncio.sleep(10)


def _rss_mb(service: services.Service) -> float:
    status = pathlib.Path(f"/proc/{service.pid}/status").read_text(encoding="ascii")
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


def _connections(service: services.Service) -> int:
    return sum(1 for one in pathlib.Path(f"/proc/{service.pid}/fd").iterdir() if _is_socket(one))


async def _holds(service: services.Service, count: int) -> bool:
    return _connections(service) > count


def _is_socket(descriptor: pathlib.Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:
        return False


@contextlib.contextmanager
def _running(folder: pathlib.Path, **env: str) -> Generator[tuple[services.Service, services.Service]]:
    with servers.native_databases(folder / "postgres") as databases:
        dsn = databases.create("order_user", "order_password", f"order_{uuid.uuid4().hex[:8]}")
        migrations.upgrade(dsn, "order")
        nowhere = f"amqp://nobody:nothing@127.0.0.1:{ports.trial(1)[0]}/"
        order = services.Service("sagapost_order", {"SAGAPOST_DATABASE_URL": dsn, "SAGAPOST_AMQP_URL": nowhere}, folder / "order.log")
        variables = {"SAGAPOST_ORDER_URL": order.url, "SAGAPOST_PAGE_PORT": "0", **env}
        gateway = services.Service("sagapost_gateway", variables, folder / "gateway.log")
        try:
            yield gateway.wait_ready(), order.wait_ready()
        finally:
            gateway.kill()
            order.kill()


def main() -> None:
    """Print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("crowd", "overload"))
    parser.add_argument("--seconds", type=float, default=0, help="of one phase: 8 beside a crowd, 60 of overload unless said otherwise")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=50, help="the good client's checkouts a second")
    parser.add_argument("--idle", type=int, default=2000)
    parser.add_argument("--slow", type=int, default=100, help="connections each that trickle headers and bodies")
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--peak-seconds", type=float, default=6)
    parser.add_argument("--set", action="append", default=[], help="a variable of the gateway, as SAGAPOST_MAX_CONNECTIONS=64")
    given = parser.parse_args()
    given.seconds = given.seconds or (8 if given.what == "crowd" else 60)
    env = dict(one.split("=", 1) for one in given.set)
    with servers.run_folder() as folder, _running(folder, **env) as (gateway, order):
        found = uvloop.run(crowd(gateway, given) if given.what == "crowd" else overload(gateway, order, given))
    sys.stdout.write(json.dumps({"cpus": os.cpu_count(), **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
