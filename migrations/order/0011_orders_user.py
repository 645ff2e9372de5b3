"""A user's orders by their time, for the limit of declined payments."""

from alembic import op

revision = "order_0011"
down_revision = "order_0010"


def upgrade() -> None:
    op.execute("CREATE INDEX orders_user ON orders (client, user_id, created_at)")
