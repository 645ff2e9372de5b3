"""The legal edges in the database are the ones of the table in code."""

from pathlib import Path

from sagapost_order import saga, transitions

MIGRATION = Path(__file__).parents[2] / "migrations" / "sql" / "saga_transitions_1.sql"


def test_migration_inserts_exactly_the_edges_of_the_table() -> None:
    """Table and database cannot drift apart: the file is what the generator writes."""
    assert MIGRATION.read_text() == saga.edges_sql()


def test_every_edge_joins_known_states() -> None:
    """Edges start at 'none' once, and end in a state."""
    edges = saga.edges()

    assert [edge for edge in edges if edge[0] == "none"] == [("none", "OrderCreated", "created")]
    assert {end for _, _, end in edges} == set(transitions.STATES)
    assert set(transitions.ORDER_STATUS) == set(transitions.STATES)
