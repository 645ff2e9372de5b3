import os

import pytest
from integration import relay_model, relay_readers, relay_world

EXAMPLES = int(os.environ.get("SAGAPOST_MODEL_EXAMPLES", "150"))
# what each way of reading or storing breaks
MUTANTS: dict[type[relay_readers.WindowLog], set[str]] = {
    relay_readers.IdCursor: {"lost"},
    relay_readers.HorizonCursor: {"inverted"},
    relay_readers.CheckpointBeforeConfirm: {"lost"},
    relay_readers.NoRunning: {"lost"},
    relay_readers.NoFencing: {"unfenced", "went back"},
    relay_readers.CachedIds: {"inverted"},
}


def test_the_model_holds(payment_db: str) -> None:
    """Whatever writers, relays, crashes and leases do: nothing lost or invented, order kept, duplicates only after a crash."""
    relay_model.check(payment_db, relay_readers.WindowLog(), examples=EXAMPLES, steps=50, shrink=True)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_finds_the_mutant(mutant: type[relay_readers.WindowLog], payment_db: str) -> None:
    """Each broken way breaks the guarantee that the missing part is there for: a model that cannot fail proves nothing."""
    with pytest.raises(relay_world.BrokenError) as found:
        relay_model.check(payment_db, mutant(), examples=600, steps=50, shrink=False)

    assert found.value.kind in MUTANTS[mutant]
