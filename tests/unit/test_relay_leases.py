"""How relays share shards, without a database."""

import pytest

from sagapost_chassis import outbox
from sagapost_relay import leases

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
