"""The mails that this process has handed over lately, by their Message-ID; it must not know what a mail is.

Email has no database. A relay that was killed before its checkpoint publishes again, the same message comes twice, and a
saga that has not heard of its receipt in time asks for it again: this memory keeps the second mail from going out. It
neither outlives the process nor reaches its replicas; what slips through there is counted and bounded, for e-mail is at
least once.
"""

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from sagapost_email import errors

SIZE: Final = 100_000  # some 20 MB


class Recent:
    """Remembers the last `size` mails that were accepted."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._accepted: OrderedDict[str, None] = OrderedDict()
        self._under_way: set[str] = set()

    @contextmanager
    def sending(self, mail_id: str) -> Generator[bool]:
        """Give False when the mail was accepted before, otherwise True: the block sends, and ends when it is accepted.

        Raises:
            SendingNowError: somebody else is in the block with this mail.

        """
        if mail_id in self._accepted:
            yield False
            return
        if mail_id in self._under_way:
            raise errors.SendingNowError(f"{mail_id} is being sent already")
        self._under_way.add(mail_id)
        try:
            yield True
        finally:
            self._under_way.discard(mail_id)
        self._accepted[mail_id] = None
        if len(self._accepted) > self._size:
            self._accepted.popitem(last=False)
