"""What the relay sets aside: more reasons, their order, and where a row may come from; which idempotency keys a service may delete."""

from pathlib import Path

from alembic import op

revision = "order_0005"
down_revision = "order_0004"

# The service may update created_at, because SELECT … FOR UPDATE asks for the right to update one column; it never does.
# The owner, who erases customers, is not held to that.
IDEMPOTENCY_KEYS = """
CREATE FUNCTION idempotency_keys_are_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER') THEN
        RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    IF TG_OP = 'UPDATE' OR OLD.created_at > now() - interval '7 days' THEN
        RAISE EXCEPTION 'an idempotency key is kept for 7 days' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN OLD;
END
$$;
CREATE TRIGGER idempotency_keys_are_kept BEFORE UPDATE OR DELETE ON idempotency_keys
    FOR EACH ROW EXECUTE FUNCTION idempotency_keys_are_kept();
"""


def upgrade() -> None:
    op.execute((Path(__file__).parents[1] / "sql" / "outbox_2.sql").read_text())
    op.execute(IDEMPOTENCY_KEYS)
