"""The legal edges in the database are the ones of the table in code."""

import re
from pathlib import Path

from sagapost_order import document, saga, states

SQL = Path(__file__).parents[2] / "migrations" / "sql"
EDGE = re.compile(r"\('(\w+)', '(\w+)', '(\w+)'\)")


def test_migrations_insert_exactly_the_edges_of_the_table() -> None:
    """Table and database cannot drift apart: the newest file is what the generator writes beside the older ones."""
    *older, newest = ((SQL / f"saga_transitions_{number}.sql").read_text() for number in (1, 2, 3))
    known = {(start, event, end) for text in older for start, event, end in EDGE.findall(text)}

    assert newest == saga.edges_sql(known)
    assert set(saga.edges()) <= known | set(EDGE.findall(newest))


def test_every_edge_joins_known_states() -> None:
    """Edges start at 'none' once, and end in a state."""
    edges = saga.edges()

    assert [edge for edge in edges if edge[0] == "none"] == [("none", "OrderCreated", "created")]
    assert {end for _, _, end in edges} == set(states.STATES)
    assert set(states.ORDER_STATUS) == set(states.STATES)


def test_the_page_shows_the_table_as_it_is() -> None:
    """docs/saga.md holds the table that the code has, word for word."""
    page = (SQL.parents[1] / "docs" / "saga.md").read_text()

    assert document.table() in page
