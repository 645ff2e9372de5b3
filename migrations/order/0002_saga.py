"""The whole saga: the end of the time to pay beside the next deadline, edges of clock, customer and operators, history that stays."""

from pathlib import Path

from alembic import op

revision = "order_0002"
down_revision = "order_0001"

# The first version kept the end of the time to pay in the deadline, as long as the payment was waited for; the default lets it go on
# writing beside this one while a deployment rolls.
SAGAS = """
ALTER TABLE sagas ADD COLUMN pay_before timestamptz;
UPDATE sagas SET pay_before = CASE WHEN deadline_kind = 'pay' THEN deadline_at ELSE created_at + interval '15 minutes' END;
ALTER TABLE sagas ALTER COLUMN pay_before SET NOT NULL, ALTER COLUMN pay_before SET DEFAULT now() + interval '15 minutes';
CREATE INDEX sagas_attention ON sagas (updated_at) WHERE attention IS NOT NULL;
"""
# beside the trigger, which the owner of the table could drop: this one it could only take back
HISTORY = "REVOKE UPDATE, DELETE, TRUNCATE ON saga_history FROM CURRENT_USER;"


def upgrade() -> None:
    op.execute(SAGAS)
    op.execute((Path(__file__).parents[1] / "sql" / "saga_transitions_2.sql").read_text())
    op.execute(HISTORY)
