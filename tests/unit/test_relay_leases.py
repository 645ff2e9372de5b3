"""How relays share shards, without a database."""

import time

import pytest

from sagapost_chassis import outbox
from sagapost_relay import desk, leases, queries, settings

RELAYS = tuple(f"relay-{letter}" for letter in "abcdefgh")


@pytest.mark.parametrize("count", range(1, len(RELAYS) + 1))
def test_shares_add_up_and_differ_by_at_most_one(count: int) -> None:
    """However many relays are alive, every shard has exactly one place to go, and nobody holds two more than another."""
    for shards in (1, outbox.SHARDS, 7):
        shares = [leases.share(RELAYS[:count], owner, shards) for owner in RELAYS[:count]]

        assert sum(shares) == shards
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("count", range(len(RELAYS)))
def test_who_is_not_alive_gets_nothing(count: int) -> None:
    """A relay that the others do not see has no share: theirs already add up."""
    assert leases.share(RELAYS[:count], RELAYS[count], outbox.SHARDS) == 0


def test_nothing_is_written_for_a_shard_after_its_lease() -> None:
    """A relay that slept does not wait until the database fences it: what it read before is not sent any more."""
    own = desk.Desk(settings.Settings(database_url="", amqp_url=""), "relay-a")
    cursor = queries.Cursor(shard=0, lo="1:1:", hi=None, last_id=0, epoch=1, system_identifier=1)

    own.admit(cursor, time.monotonic() + 60)
    shard = own.shards[0]
    held = own.may_write(shard)
    shard.deadline = time.monotonic() - 0.001
    late = own.may_write(shard)
    own.admit(cursor, time.monotonic() + 60)
    replaced = own.may_write(shard)

    assert (held, late, replaced) == (True, False, False)
