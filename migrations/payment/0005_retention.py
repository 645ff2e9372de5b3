"""What is forgotten by age: the inbox, and the addresses of customers whose payments ended long ago."""

from pathlib import Path

from alembic import op

revision = "payment_0005"
down_revision = "payment_0004"

CUSTOMERS = """
CREATE FUNCTION forget_customers(keep_days integer, batch integer) RETURNS integer
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH old AS MATERIALIZED (
        SELECT id FROM payments
         WHERE user_email NOT LIKE '%@erased.invalid' AND status NOT IN ('processing', 'refunding')
           AND created_at < now() - make_interval(days => greatest(keep_days, 30))
           AND updated_at < now() - make_interval(days => greatest(keep_days, 30))
         ORDER BY created_at LIMIT least(batch, 10000) FOR UPDATE SKIP LOCKED
    ), done AS (
        UPDATE payments AS p SET user_email = 'erased-' || left(replace(gen_random_uuid()::text, '-', ''), 16) || '@erased.invalid'
          FROM old WHERE p.id = old.id RETURNING 1
    )
    SELECT count(*)::integer FROM done
$$;
REVOKE ALL ON FUNCTION forget_customers FROM PUBLIC;
"""
# built beside the writes of a shop that is open
INDEXES = (
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS inbox_received ON inbox (received_at)",
    """CREATE INDEX CONCURRENTLY IF NOT EXISTS payments_with_customer ON payments (created_at)
        WHERE user_email NOT LIKE '%@erased.invalid'""",
)


def upgrade() -> None:
    op.execute((Path(__file__).parents[1] / "sql" / "retention_1.sql").read_text())
    op.execute(CUSTOMERS)
    with op.get_context().autocommit_block():
        for statement in INDEXES:
            op.execute(statement)
