"""What operators did with dead letters: who, why, what they chose, and what became of each."""

from alembic import op

revision = "order_0003"
down_revision = "order_0002"

# A letter's row is written before the letter moves and changed after it: 'moving' in a run that is over means that nobody knows.
# The services' queues are named here and not referenced: a queue can go, the record stays.
DLQ = """
CREATE TABLE dlq_runs (
    id          uuid        PRIMARY KEY,
    kind        text        NOT NULL CHECK (kind IN ('replay', 'discard')),
    queue       text        NOT NULL,
    actor       text        NOT NULL,
    reason      text        NOT NULL,
    choice      jsonb       NOT NULL,
    state       text        NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'stopped', 'failed', 'broken_off')),
    detail      text        NOT NULL DEFAULT '',
    matched     integer     NOT NULL DEFAULT 0,
    moved       integer     NOT NULL DEFAULT 0,
    came_back   integer     NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    CHECK ((state = 'running') = (ended_at IS NULL))
);
CREATE INDEX dlq_runs_queue ON dlq_runs (queue, started_at DESC);
CREATE TABLE dlq_letters (
    run_id      uuid        NOT NULL REFERENCES dlq_runs (id),
    number      integer     NOT NULL,
    message_id  text        NOT NULL,
    type        text        NOT NULL,
    fingerprint text        NOT NULL,
    state       text        NOT NULL CHECK (state IN ('moving', 'replayed', 'discarded', 'left', 'unknown')),
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, number)
);
CREATE INDEX dlq_letters_message ON dlq_letters (message_id);
REVOKE DELETE, TRUNCATE ON dlq_runs, dlq_letters FROM CURRENT_USER;
"""


def upgrade() -> None:
    op.execute(DLQ)
