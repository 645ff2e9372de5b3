"""Makes what tests take one of each, in a thread, ahead of the test that takes it; knows not what that is."""

import collections
import concurrent.futures
from collections.abc import Callable
from typing import Final, Generic, Self, TypeVar

T = TypeVar("T")

WAITING: Final = 2


class Ahead(Generic[T]):
    """A few results of `make`, ready before they are asked for: a virtual host's queues take longer to declare than most tests run."""

    def __init__(self, make: Callable[[], T], waiting: int = WAITING) -> None:
        self._make = make
        self._worker = concurrent.futures.ThreadPoolExecutor(1)
        self._ready: collections.deque[concurrent.futures.Future[T]] = collections.deque()
        for _ in range(waiting):
            self._ready.append(self._worker.submit(make))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(cancel_futures=True)

    def take(self) -> T:
        """Give the oldest one, and begin another; raises what making it raised."""
        self._ready.append(self._worker.submit(self._make))
        return self._ready.popleft().result()

    def clean(self, remove: Callable[[], object]) -> None:
        """Remove what a test has used, behind the next one's back; what fails here fails nobody."""
        self._worker.submit(remove)
