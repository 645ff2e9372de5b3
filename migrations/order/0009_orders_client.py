"""A client's orders by their age, for GET /api/orders."""

from alembic import op

revision = "order_0009"
down_revision = "order_0008"


def upgrade() -> None:
    op.execute("CREATE INDEX orders_client ON orders (client, id DESC)")
