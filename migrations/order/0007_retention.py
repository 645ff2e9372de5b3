"""What is forgotten by age: the inbox, and the addresses of customers whose orders ended long ago."""

from pathlib import Path

from alembic import op

revision = "order_0007"
down_revision = "order_0006"

# An order keeps its address as long as a mail may have to be sent: until its saga has ended, and 30 days more at least.
CUSTOMERS = """
CREATE FUNCTION forget_customers(keep_days integer, batch integer) RETURNS integer
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS MATERIALIZED (
        SELECT o.id FROM orders AS o JOIN sagas AS s ON s.order_id = o.id
         WHERE o.user_email NOT LIKE '%@erased.invalid'
           AND o.created_at < now() - make_interval(days => greatest(keep_days, 30))
           AND s.updated_at < now() - make_interval(days => greatest(keep_days, 30)) AND s.deadline_at IS NULL
         ORDER BY o.created_at LIMIT least(batch, 10000) FOR UPDATE OF o SKIP LOCKED
    ), done AS (
        UPDATE orders AS o SET user_email = 'erased-' || left(replace(gen_random_uuid()::text, '-', ''), 16) || '@erased.invalid'
          FROM old WHERE o.id = old.id RETURNING 1
    )
    SELECT count(*)::integer FROM done
$$;
REVOKE ALL ON FUNCTION forget_customers FROM PUBLIC;
"""
# built beside the writes of a shop that is open
INDEXES = (
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS inbox_received ON inbox (received_at)",
    """CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_with_customer ON orders (created_at)
        WHERE user_email NOT LIKE '%@erased.invalid'""",
)


def upgrade() -> None:
    op.execute((Path(__file__).parents[1] / "sql" / "retention_1.sql").read_text())
    op.execute(CUSTOMERS)
    with op.get_context().autocommit_block():
        for statement in INDEXES:
            op.execute(statement)
