"""The messages whose mails this process has handed over lately; it must not know what a mail is.

Email has no database. A relay that was killed before its checkpoint publishes again, and the same message comes twice:
this memory keeps the second mail from going out. It neither outlives the process nor reaches its replicas; what slips
through there is counted and bounded, for e-mail is at least once.
"""

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from sagapost_email import errors

SIZE: Final = 100_000  # message ids, some 20 MB


class Recent:
    """Remembers the last `size` messages whose mails were accepted."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._accepted: OrderedDict[UUID, None] = OrderedDict()
        self._under_way: set[UUID] = set()

    @contextmanager
    def sending(self, message_id: UUID) -> Generator[bool]:
        """Give False when the message's mail was accepted before, otherwise True: the block sends, and ends when it is accepted.

        Raises:
            SendingNowError: another delivery of the message is in its block.

        """
        if message_id in self._accepted:
            yield False
            return
        if message_id in self._under_way:
            raise errors.SendingNowError(f"another delivery of {message_id} is being sent")
        self._under_way.add(message_id)
        try:
            yield True
        finally:
            self._under_way.discard(message_id)
        self._accepted[message_id] = None
        if len(self._accepted) > self._size:
            self._accepted.popitem(last=False)
