"""Customers of a whole stack who buy at a steady rate, with kept connections and with new ones, and who follow their orders."""

import asyncio
import contextlib
import threading
import uuid
from collections import Counter
from collections.abc import AsyncGenerator

import httpx
import msgspec

CART = {"user_id": 1, "user_email": "rolling@example.com", "items": [{"product_id": 2, "quantity": 1, "price": "49.99"}]}
SLOW = "pm_slow"  # six seconds at the provider: long enough for a stream to be cut in between
FOLLOW_S = 90.0
AGAIN_S = 0.2
MOST = 8  # at a time: on a machine that is slow today fewer buy, for this is about restarts and not about overload
NO_ANSWER = "Server disconnected without sending a response"


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of an accepted checkout."""

    id: int
    saga_id: str
    links: dict[str, str]


class Story(msgspec.Struct, kw_only=True):
    """One saga as its stream told it: the numbers of its events in the order of arrival, and how many connections that took."""

    saga_id: str
    seen: list[int] = []
    connections: int = 0
    ended: bool = False


class Books(msgspec.Struct, kw_only=True):
    """What became of the checkouts; `repeated` were sent again because a kept connection was closed before any answer."""

    accepted: list[Placed] = []
    failed: Counter[str] = msgspec.field(default_factory=Counter)
    repeated: int = 0
    stories: list[Story] = []


class Shoppers:
    """Buys `rate` times a second from `start` to `finish`, at most; while `slowly` is set, one in a second is slow, and is followed."""

    def __init__(self, url: str, rate: int) -> None:
        self.books = Books()
        self.slowly = threading.Event()
        self._url = url
        self._rate = rate
        self._buying = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._shop()))

    def start(self) -> None:
        """Open the doors."""
        self.slowly.set()
        self._thread.start()

    def finish(self) -> Books:
        """Let everybody who is buying finish, and give the books."""
        self._over.set()
        self._thread.join()
        return self.books

    async def _shop(self) -> None:
        fresh = httpx.AsyncClient(base_url=self._url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
        kept = httpx.AsyncClient(base_url=self._url, timeout=30, limits=httpx.Limits(keepalive_expiry=60))
        async with fresh, kept, asyncio.TaskGroup() as group:
            began = asyncio.get_running_loop().time()
            number = 0
            while not self._over.is_set():
                if self._buying < MOST:
                    group.create_task(self._buy(kept if number % 2 else fresh, keeps=bool(number % 2)))
                if number % self._rate == 0 and self.slowly.is_set():
                    group.create_task(self._buy_slowly(fresh))
                number += 1
                # the n-th customer comes at its time, however long the others take
                await asyncio.sleep(began + number / self._rate - asyncio.get_running_loop().time())

    async def _buy(self, client: httpx.AsyncClient, *, keeps: bool, cart: dict[str, object] = CART) -> Placed | None:
        self._buying += 1
        try:
            answer = await self._checkout(client, cart, keeps=keeps)
        except httpx.HTTPError as exc:
            self.books.failed[f"{'kept' if keeps else 'new'} connection: {exc!r}"] += 1
            return None
        finally:
            self._buying -= 1
        if answer.status_code != 202:
            self.books.failed[f"{answer.status_code}: {answer.text}"] += 1
            return None
        placed = msgspec.json.decode(answer.content, type=Placed)
        self.books.accepted.append(placed)
        return placed

    async def _checkout(self, client: httpx.AsyncClient, cart: dict[str, object], *, keeps: bool) -> httpx.Response:
        key = {"Idempotency-Key": uuid.uuid4().hex}
        try:
            return await client.post("/api/checkout", json=cart, headers=key)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as exc:
            # RFC 9110, 9.2.2: what may be repeated is repeated when a kept connection turns out to be closed
            if not keeps or (isinstance(exc, httpx.RemoteProtocolError) and NO_ANSWER not in str(exc)):
                raise
            self.books.repeated += 1
            return await client.post("/api/checkout", json=cart, headers=key)

    async def _buy_slowly(self, client: httpx.AsyncClient) -> None:
        placed = await self._buy(client, keeps=False, cart={**CART, "payment_method": SLOW})
        if placed is None:
            return
        story = Story(saga_id=placed.saga_id)
        self.books.stories.append(story)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_S):
                while not story.ended:
                    async for number in self._events(client, placed.links["events"], story):
                        story.seen.append(number)
                    await asyncio.sleep(AGAIN_S)

    async def _events(self, client: httpx.AsyncClient, path: str, story: Story) -> AsyncGenerator[int]:
        """Read one stream to its end, from behind the last event that was seen."""
        story.connections += 1
        headers = {"Last-Event-ID": str(story.seen[-1])} if story.seen else {}
        try:
            async with client.stream("GET", path, headers=headers) as stream:
                if stream.status_code != 200:
                    self.books.failed[f"events: {stream.status_code}"] += 1
                    return
                async for line in stream.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name == "id":
                        yield int(value)
                    story.ended = story.ended or line == "event: end"
        except httpx.HTTPError as exc:
            self.books.failed[f"events: {exc!r}"] += 1
