"""How often a message was delivered before, as each version of the broker says it."""

from typing import Any, cast

import pytest
from aiormq import abc
from pamqp import commands, header

from sagapost_chassis import arrivals


@pytest.mark.parametrize(
    ("headers", "deliveries"),
    [
        (None, 0),
        ({}, 0),
        ({"x-delivery-count": 3}, 3),
        ({"x-acquired-count": 4}, 4),
        ({"x-delivery-count": 1, "x-acquired-count": 5}, 5),
        ({"x-delivery-count": 5, "x-acquired-count": 1}, 5),
        ({"x-delivery-count": 0, "x-acquired-count": 0}, 0),
        ({"x-delivery-count": "7", "x-acquired-count": True}, 0),
        ({"x-delivery-count": None, "x-acquired-count": 3}, 3),
    ],
    ids=["none", "first", "3.10", "4.0", "4.1", "requeued", "zero", "forged", "half"],
)
def test_deliveries_are_counted_for_every_version_of_the_broker(headers: dict[str, Any] | None, deliveries: int) -> None:
    """RabbitMQ 3.10 counts in one header, 4.0 and later in two; the larger one decides who is a suspect, and nonsense counts nothing."""
    delivered = abc.DeliveredMessage(
        delivery=commands.Basic.Deliver(consumer_tag="1", delivery_tag=1),
        header=header.ContentHeader(properties=commands.Basic.Properties(headers=headers)),
        body=b"{}",
        channel=cast("abc.AbstractChannel", None),
    )

    assert arrivals.Arrival(delivered).deliveries == deliveries
