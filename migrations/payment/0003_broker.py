"""What the relay sets aside: more reasons, their order, and where a row may come from."""

from pathlib import Path

from alembic import op

revision = "payment_0003"
down_revision = "payment_0002"


def upgrade() -> None:
    op.execute((Path(__file__).parents[1] / "sql" / "outbox_2.sql").read_text())
