"""The bookkeeping of delivery tags, held against the simplest that could be right."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sagapost_relay import blocks, tags

ROW = blocks.Row(
    id=1, shard=0, event_id="", type="T", routing_key="a.b", correlation_id="c", headers="{}", payload=b"", size_bytes=0, created_s=1e9
)
CONFIRMED, RETURNED, NACKED, REFUSED = blocks.Outcome.CONFIRMED, blocks.Outcome.RETURNED, blocks.Outcome.NACKED, blocks.Outcome.REFUSED


def _block(name: str, size: int, settled: list[str]) -> blocks.Block:
    return blocks.Block([ROW._replace(event_id=f"{name}.{n}") for n in range(size)], lambda: settled.append(name))


def _take(known: tags.Tags, block: blocks.Block, refused: Sequence[int]) -> list[int]:
    """Take tags for all rows but the refused ones, in one piece between any two of them; give the indices in order."""
    start = 0
    for end in (*refused, len(block.rows)):
        if end > start:
            known.take(block, start, end)
        start = end + 1
    for index in refused:
        block.settle_one(index, REFUSED, "bad")
    return [index for index in range(len(block.rows)) if index not in refused]


@given(st.data())
def test_every_answer_reaches_its_row_and_a_first_answer_stands(data: st.DataObject) -> None:
    """Whatever the order of blocks, returns and confirms, single or multiple: each row holds the first thing said of it."""
    known = tags.Tags()
    settled: list[str] = []
    made: list[blocks.Block] = []
    by_tag: list[tuple[blocks.Block, int]] = []
    expected: dict[tuple[int, int], blocks.Outcome] = {}
    for number in range(data.draw(st.integers(1, 4))):
        block = _block(str(number), data.draw(st.integers(1, 6)), settled)
        refused = sorted(data.draw(st.sets(st.integers(0, len(block.rows) - 1), max_size=2)))
        made.append(block)
        by_tag += [(block, index) for index in _take(known, block, refused)]
        expected |= {(id(block), index): REFUSED for index in refused}
        for _ in range(data.draw(st.integers(0, 6))):
            if not by_tag:
                break
            tag = data.draw(st.integers(1, len(by_tag)))
            if data.draw(st.booleans()):
                block, index = by_tag[tag - 1]
                found = known.find(block.rows[index].event_id)
                assert (found is None) == ((id(block), index) in expected)
                if found is not None:
                    found[0].settle_one(found[1], RETURNED, "312")
                    expected[id(block), index] = RETURNED
                continue
            outcome, multiple = data.draw(st.sampled_from((CONFIRMED, NACKED))), data.draw(st.booleans())
            assert known.answer(tag, outcome, multiple=multiple)
            for block, index in by_tag[0 if multiple else tag - 1 : tag]:
                expected.setdefault((id(block), index), outcome)
    assert not known.answer(0, CONFIRMED, multiple=True)
    assert not known.answer(len(by_tag) + 1, CONFIRMED, multiple=True)

    assert [[expected.get((id(block), index), 0) for index in range(len(block.rows))] for block in made] == [
        list(block.outcomes) for block in made
    ]
    assert sorted(settled) == [str(number) for number, block in enumerate(made) if all(block.outcomes)]
    assert all(block.left == block.outcomes.count(0) for block in made)


def test_answers_one_by_one_and_out_of_order_leave_nothing_behind() -> None:
    """A broker that never confirms many at once makes nothing grow: no block is held after its last answer."""
    known = tags.Tags()
    settled: list[str] = []
    first, second = _block("a", 3, settled), _block("b", 2, settled)
    known.take(first, 0, 3)
    known.take(second, 0, 2)

    for tag in (5, 2, 3, 4, 1):
        assert known.answer(tag, CONFIRMED, multiple=False)

    assert settled == ["b", "a"]
    assert known.find("a.0") is None
    assert len(known) == 0


def test_two_rows_with_one_message_id_are_returned_one_after_the_other() -> None:
    """Nothing keeps an outbox from holding an id twice; a return is for the first that has no answer."""
    known = tags.Tags()
    block = blocks.Block([ROW._replace(event_id="same"), ROW._replace(event_id="same")], lambda: None)
    known.take(block, 0, 2)

    found = []
    while (one := known.find("same")) is not None:
        found.append(one[1])
        block.settle_one(one[1], RETURNED, "312")

    assert found == [0, 1]
