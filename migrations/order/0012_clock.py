"""When the deadlines of a saga were written, by the database's clock: after a step of the clock they are moved by as much."""

from alembic import op

revision = "order_0012"
down_revision = "order_0011"

# The default comes after the column, so that no row is written here. NULL: written before this migration, at `updated_at`. The version
# before does not update it: while both run, a deadline that it wrote may be moved by a step that came before it.
CLOCK = """
ALTER TABLE sagas ADD COLUMN clock_at timestamptz;
ALTER TABLE sagas ALTER COLUMN clock_at SET DEFAULT clock_timestamp();
"""


def upgrade() -> None:
    op.execute(CLOCK)
