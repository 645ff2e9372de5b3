"""A saga moves only together with the row of its history that says so."""

from alembic import op

revision = "order_0010"
down_revision = "order_0009"

# Looked at when the transaction ends, because the history row follows the saga's. A row of the history cannot be changed or deleted, so
# that what moved a saga stays known. The owner, who restores dumps and brings lost orders back, is not held to that.
HISTORY = """
CREATE FUNCTION sagas_have_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'MEMBER') AND NOT EXISTS (
        SELECT FROM public.saga_history AS h
         WHERE h.saga_id = NEW.id AND h.seq = NEW.version AND h.to_state = NEW.state
           AND (h.facts ->> 'captured')::numeric = NEW.captured AND (h.facts ->> 'refunded')::numeric = NEW.refunded
    ) THEN
        RAISE EXCEPTION 'saga % has no row in its history for version %', NEW.id, NEW.version USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER sagas_have_history AFTER INSERT OR UPDATE OF version, state, captured, refunded ON sagas
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sagas_have_history();
"""


def upgrade() -> None:
    op.execute(HISTORY)
