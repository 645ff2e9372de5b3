"""The memory that keeps a repeated message from being mailed twice by one process."""

import contextlib
from uuid import uuid4

import pytest

from sagapost_email import errors, recent


def test_a_message_is_sent_once() -> None:
    """Whoever comes with an accepted mail again is told not to send."""
    memory, message = recent.Recent(), str(uuid4())

    with memory.sending(message) as first:
        pass
    with memory.sending(message) as second:
        pass

    assert (first, second) == (True, False)


def test_a_message_that_was_not_accepted_is_sent_again() -> None:
    """A failed attempt leaves nothing behind: the retry sends."""
    memory, message = recent.Recent(), str(uuid4())

    with contextlib.suppress(ZeroDivisionError), memory.sending(message):
        raise ZeroDivisionError
    with memory.sending(message) as again:
        pass

    assert again


def test_two_deliveries_at_once_do_not_both_send() -> None:
    """While one delivery is at it, another goes back to the retry ladder."""
    memory, message = recent.Recent(), str(uuid4())

    with memory.sending(message), pytest.raises(errors.SendingNowError), memory.sending(message):
        pass


def test_the_memory_is_bounded() -> None:
    """Only the last messages are remembered."""
    memory, messages = recent.Recent(size=2), [str(uuid4()) for _ in range(3)]
    for message in messages:
        with memory.sending(message):
            pass

    with memory.sending(messages[0]) as oldest:
        pass
    with memory.sending(messages[2]) as newest:
        pass

    assert (oldest, newest) == (True, False)
