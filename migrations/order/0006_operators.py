"""What operators' commands changed beside sagas and dead letters; who made and revoked an API key, why, and until when it works."""

from alembic import op

revision = "order_0006"
down_revision = "order_0005"

ACTIONS = """
CREATE TABLE operator_actions (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    command text        NOT NULL,
    actor   text        NOT NULL,
    reason  text        NOT NULL,
    detail  jsonb       NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);
REVOKE UPDATE, DELETE, TRUNCATE ON operator_actions FROM CURRENT_USER;
"""
# the defaults let the version before go on making keys while a deployment rolls
KEYS = """
ALTER TABLE api_keys
    ADD COLUMN expires_at     timestamptz,
    ADD COLUMN created_by     text NOT NULL DEFAULT '',
    ADD COLUMN created_reason text NOT NULL DEFAULT '',
    ADD COLUMN revoked_by     text,
    ADD COLUMN revoked_reason text;
"""


def upgrade() -> None:
    op.execute(ACTIONS)
    op.execute(KEYS)
