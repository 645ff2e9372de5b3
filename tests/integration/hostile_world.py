"""Books, outboxes, dead letters, broker and logs in which every stored text is hostile, and the command line called on them."""

import json
import pathlib
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from integration import ops_box
from integration.test_ops_dlq_desk import Desk
from psycopg import sql

from sagapost_contracts import topology
from sagapost_ops import cli, screen
from sagapost_sandbox import management

# C1's CSI first, for it is what is looked for in the output; then a link, a title, bidi, zero-width, a filler, a forged line, markup
HOSTILE: Final = "\x9b31m\x1b]8;;http://evil\x07\u202e\u200b\u3164\r\nFORGED [link=http://evil]x[/]"
SHOWN: Final = "\\x9b31m"
NONE: Final = "(none)"  # stands for NULL while a column is hostile
TEXTS: Final = """
SELECT c.relname, a.attname, a.atttypid = 'text[]'::regtype, a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype),
       EXISTS (SELECT FROM pg_constraint AS k WHERE k.conrelid = c.oid AND a.attnum = ANY (k.conkey))
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
   AND a.atttypid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'text[]'::regtype)
 ORDER BY c.relname, a.attnum
"""
CHECKS: Final = """
SELECT conrelid::regclass::text, conname FROM pg_constraint
 WHERE contype IN ('c', 'f') AND coninhcount = 0 AND connamespace = 'public'::regnamespace
"""
ROWS: Final = (
    "INSERT INTO outbox_relay VALUES ('relay-1', now() + interval '1 hour') ON CONFLICT DO NOTHING",
    "UPDATE outbox_cursor SET owner = 'relay-1', lease_until = now() + interval '1 hour'",
)
BY_HAND: Final = """
INSERT INTO saga_history (saga_id, seq, from_state, to_state, event, outcome, source, actor, reason, facts, at)
SELECT saga_id, 4, 'notified', 'notified', 'OperatorRetry', 'ignored', 'operator', 'ann', 'test', facts, at
  FROM saga_history WHERE seq = 3
"""
ORPHAN: Final = """
INSERT INTO payments (order_id, saga_id, status, amount, currency, payment_method, transaction_id, user_email, items, pay_before)
VALUES (999, gen_random_uuid(), 'captured', 5, 'USD', 'pm_card_ok', 'tx', 'a@example.com', '[]', now())
"""
OLD: Final = "UPDATE inbox SET received_at = now() - interval '90 days'"


class Run(NamedTuple):
    """How a call of the command line ended."""

    line: str
    code: int
    out: str
    err: str

    @property
    def acts(self) -> set[str]:
        """What of it a terminal would obey or hide, or whether it has a line that the command did not print."""
        signs = {sign for sign in self.out + self.err if sign != "\n" and (unicodedata.category(sign)[0] == "C" or sign == "\u3164")}
        lines = {line for line in (self.out + self.err).splitlines() if line.strip().startswith("FORGED")}
        return signs | lines


class Column(NamedTuple):
    """A column of text; `is_short`: its type has a length; `is_bound`: a constraint or a key says what may stand in it."""

    database: str
    table: str
    name: str
    is_list: bool
    is_short: bool
    is_bound: bool


class World:
    """Two databases whose texts are made hostile and put right again, and commands on them."""

    def __init__(self, urls: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._conns = {name: psycopg.connect(url, autocommit=True) for name, url in urls.items()}
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.columns: list[Column] = []  # every column of text of both databases
        monkeypatch.setattr(screen, "_PIPE_WIDTH", 4000)  # no cell is folded: what it holds is looked for

    def close(self) -> None:
        """End the sessions."""
        for conn in self._conns.values():
            conn.close()

    def prepare(self) -> None:
        """Take every constraint and trigger away that keeps hostile text out, so that the commands are the last line of defence."""
        self.columns = [column for name, conn in self._conns.items() for column in self._columns(conn, name)]
        for conn in self._conns.values():
            for statement in ROWS:
                conn.execute(statement.encode())
            conn.execute("SET session_replication_role = replica")
            for table, name in conn.execute(CHECKS.encode()).fetchall():
                conn.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {} CASCADE").format(sql.Identifier(table), sql.Identifier(name)))
            for column in self._columns(conn, ""):
                if column.is_short:
                    conn.execute(
                        sql.SQL("ALTER TABLE {} ALTER COLUMN {} TYPE text").format(
                            sql.Identifier(column.table), sql.Identifier(column.name)
                        )
                    )
        self._conns["order"].execute(BY_HAND.encode())
        self._conns["payment"].execute(ORPHAN.encode())
        for conn in self._conns.values():
            conn.execute(OLD.encode())

    def poison(self, columns: list[Column]) -> None:
        """Put hostile text in front of what stands in these columns."""
        for column in columns:
            change = (
                "UPDATE {table} SET {name} = array_prepend({hostile}, {name})"
                if column.is_list
                else "UPDATE {table} SET {name} = {hostile} || coalesce({name}, {none})"
            )
            self._change(column, change)

    def heal(self, columns: list[Column]) -> None:
        """Put back what stood there."""
        for column in columns:
            change = (
                "UPDATE {table} SET {name} = {name}[2:]"
                if column.is_list
                else "UPDATE {table} SET {name} = nullif(substr({name}, length({hostile}) + 1), {none})"
            )
            self._change(column, change)

    def call(self, line: str) -> Run:
        """Call `./sagapost …` in this process."""
        self._monkeypatch.setattr(sys, "argv", ["./sagapost", *line.split()])
        self._capsys.readouterr()
        try:
            code = cli.run()
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
        return Run(line, code, *self._capsys.readouterr())

    def _columns(self, conn: psycopg.Connection[Any], database: str) -> Iterator[Column]:
        for row in conn.execute(TEXTS.encode()).fetchall():
            yield Column(database, *row)

    def _change(self, column: Column, statement: str) -> None:
        self._conns[column.database].execute(
            sql.SQL(statement).format(
                table=sql.Identifier(column.table), name=sql.Identifier(column.name), hostile=sql.Literal(HOSTILE), none=sql.Literal(NONE)
            )
        )


def write_letters(desk: Desk) -> None:
    """Put a dead letter whose every header, property and field is hostile into each dead-letter queue."""
    for queue in topology.WORK_QUEUES:
        headers = dict.fromkeys(("x-replay-id", "x-original-routing-key", "schema-version", HOSTILE), HOSTILE)
        body = json.dumps({"order_id": 7, "user_email": HOSTILE, HOSTILE: HOSTILE}, ensure_ascii=False).encode()
        desk.put(1, queue=queue, fingerprint=HOSTILE, says=HOSTILE, kind=HOSTILE, body=body, headers=headers)


def write_outboxes(urls: dict[str, str]) -> None:
    """Set messages aside in both databases."""
    for url in urls.values():
        box = ops_box.Box(url)
        box.set_aside(box.add())
        box.set_aside(box.add(), "waiting", "nacked")
        box.close()


def write_log(home: pathlib.Path) -> None:
    """Write a log as a service and a server would whom nobody checks: JSON with raw characters, and lines that are none."""
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"at": HOSTILE, "level": "info", "event": HOSTILE, HOSTILE: HOSTILE, "list": [HOSTILE]}
    one = json.dumps(fields, ensure_ascii=False).replace("\\n", "\u2028").replace("\\u001b", "\x1b")
    (folder / "order.log").write_text(f"{json.dumps(fields, ensure_ascii=False)}\n{one}\n{HOSTILE}\n", encoding="utf-8")


def bind(api: management.Management, vhost: str) -> None:
    """Bind a queue with a hostile routing key, under which a check of the topology names it."""
    management.request(api, "POST", f"/api/bindings/{vhost}/e/{topology.EXCHANGE}/q/{topology.ORDER_QUEUE}", {"routing_key": HOSTILE})
