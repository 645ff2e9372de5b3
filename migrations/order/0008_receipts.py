"""Receipts that are being sent, cancellations that wait for them, mails of the end, and which message has left the outbox."""

from pathlib import Path

from alembic import op

revision = "order_0008"
down_revision = "order_0007"

# `told_xid`: the transaction of the saga's last message; that of a message which the version before this one adds beside us is not
# noted, but for its first. NULL: a message of before this migration counts as sent. No row is written here.
# `late_messages`: how many came after the end and changed nothing; they have no history row.
SAGAS = """
ALTER TABLE sagas ADD COLUMN told_xid xid8;
ALTER TABLE sagas ALTER COLUMN told_xid SET DEFAULT pg_current_xact_id();
ALTER TABLE sagas ADD COLUMN receipt_until timestamptz, ADD COLUMN cancel_noted text;
ALTER TABLE sagas ADD COLUMN late_messages integer NOT NULL DEFAULT 0;
ALTER TABLE saga_history ADD COLUMN mail text;
CREATE INDEX outbox_parked_aggregate ON outbox_parked (aggregate);
"""
# A compensated order keeps a deadline until its customer was told. A cancellation that was noted is refused an end that forgets it.
# NOT VALID: new rows are checked, and the old ones, which all fit, are not read under the lock.
CHECKS = """
ALTER TABLE sagas DROP CONSTRAINT sagas_check3;
ALTER TABLE sagas ADD CONSTRAINT sagas_deadline_check CHECK (
    (state <> 'notified' OR deadline_at IS NULL) AND (state IN ('notified', 'compensated') OR deadline_at IS NOT NULL)) NOT VALID;
ALTER TABLE sagas ADD CONSTRAINT sagas_noted_check CHECK (
    cancel_noted IS NULL OR state IN ('created', 'paid', 'notify_failed')) NOT VALID;
"""


def upgrade() -> None:
    op.execute(SAGAS)
    op.execute(CHECKS)
    op.execute((Path(__file__).parents[1] / "sql" / "saga_transitions_3.sql").read_text())
