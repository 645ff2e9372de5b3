"""When the deadlines of a saga were written, by the database's clock: after a step of the clock they are moved by as much."""

from alembic import op

revision = "order_0012"
down_revision = "order_0011"

# The default comes after the column, so that no row is written here. NULL: written before this migration, at `updated_at`. A version
# that does not know the column leaves an older time in it, which says no more than that the row is older than it is.
CLOCK = """
ALTER TABLE sagas ADD COLUMN clock_at timestamptz;
ALTER TABLE sagas ALTER COLUMN clock_at SET DEFAULT clock_timestamp();
"""


def upgrade() -> None:
    op.execute(CLOCK)
