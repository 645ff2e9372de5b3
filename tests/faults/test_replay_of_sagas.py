"""A fault that kills messages in two services, mended, and a replay that is killed again and again: every saga still ends, once.

SAGAPOST_TEST_DLQ_KILLS=20 kills the replay as often, SEED=… repeats when.
"""

import contextlib
import functools
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Generator, Mapping
from typing import Any, Final

import psycopg
import pytest
from faults import conftest as stacks_of
from faults import stack as stacks

from sagapost_contracts import topology
from sagapost_sandbox.testing import polling, servers

KILLS = int(os.environ.get("SAGAPOST_TEST_DLQ_KILLS", "3"))
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ORDERS = 10 + 5 * KILLS  # a run of the command begins with two seconds of Python; each should find something to do
QUEUES: Final = (topology.PAYMENT_QUEUE, topology.ORDER_QUEUE)
ONE_STEP: Final = {"SAGAPOST_RETRY_DELAYS_S": "1"}
SHORT_LADDER: Final = {
    "order": {**ONE_STEP, "SAGAPOST_NOTIFY_S": "600"},  # or a slow run asks for mails again, and the dead letters are more than the orders
    "payment": ONE_STEP,
    "email": ONE_STEP,
}
pytestmark = pytest.mark.timeout(400 + 15 * KILLS)


@pytest.fixture
def short_stack(
    tmp_path: pathlib.Path, database_server: servers.Databases, broker: servers.Broker, templates: Mapping[str, str]
) -> Generator[stacks.Stack]:
    """Run a stack whose ladder has one step of a second, so that what fails twice is dead."""
    with stacks_of.running(tmp_path, database_server, broker, templates, SHORT_LADDER) as made:
        yield made


def _command(stack: stacks.Stack, *arguments: str) -> "subprocess.Popen[str]":
    known = {
        "SAGAPOST_ORDER_DATABASE_URL": str(stack.known.order_database_url),
        "SAGAPOST_PAYMENT_DATABASE_URL": str(stack.known.payment_database_url),
        "SAGAPOST_AMQP_URL": str(stack.known.amqp_url),
        "SAGAPOST_MANAGEMENT_URL": str(stack.known.management_url),
    }
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGAPOST_")}
    line = [sys.executable, "-P", "-m", "sagapost_ops", "dlq", *arguments, "--json"]
    return subprocess.Popen(line, env=environ | known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answer(stack: stacks.Stack, *arguments: str) -> tuple[int, Any]:
    child = _command(stack, *arguments)
    out, err = child.communicate(timeout=120)
    assert child.returncode in {0, 3}, err
    return child.returncode, json.loads(out) if out else None


def _dead(stack: stacks.Stack) -> dict[str, int]:
    return {line["queue"]: line["depth"] for line in _answer(stack, "list")[1]}


def _all_dead(stack: stacks.Stack, queue: str) -> bool:
    return _dead(stack)[topology.dead_letter_queue(queue)] >= ORDERS


@contextlib.contextmanager
def _broken(database: object, table: str, check: str) -> Generator[None]:
    """Let a database refuse what its service has to write, as a half-run migration does."""
    with psycopg.connect(str(database), autocommit=True) as conn:
        conn.execute(f"ALTER TABLE {table} ADD CONSTRAINT broken CHECK ({check}) NOT VALID".encode())
        yield
        conn.execute(f"ALTER TABLE {table} DROP CONSTRAINT broken".encode())


def _replay(queue: str) -> tuple[str, ...]:
    return ("replay", queue, "--all", "--rate", "20/s", "--settle", "0", "--yes", "--reason", "the fault is mended")


def _killed_again_and_again(stack: stacks.Stack, queue: str, dice: random.Random) -> None:
    """Start the replay, let it live for a moment once it has begun, kill it; then let one come to its end."""
    for _ in range(KILLS):
        begun = len(_runs(stack))
        child = _command(stack, *_replay(queue))
        polling.eventually(functools.partial(_begun, stack, begun, child), 30)
        try:
            child.wait(dice.uniform(0, 0.5))
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()
    _answer(stack, *_replay(queue))


def _begun(stack: stacks.Stack, than: int, child: "subprocess.Popen[str]") -> bool:
    return len(_runs(stack)) > than or child.poll() is not None


def _runs(stack: stacks.Stack) -> list[str]:
    with psycopg.connect(str(stack.known.order_database_url)) as conn:
        return [state for (state,) in conn.execute("SELECT state FROM dlq_runs").fetchall()]


def _money_and_mails(stack: stacks.Stack, saga_ids: list[str]) -> list[tuple[list[str], str]]:
    moved = [[movement["kind"] for movement in stack.movements(saga_id)] for saga_id in saga_ids]
    return list(zip(moved, (stack.reached(saga_id, "notified")["state"] for saga_id in saga_ids), strict=True))


def test_a_replay_killed_at_random_points_brings_every_saga_to_its_end(short_stack: stacks.Stack) -> None:
    """Payments and their answers, each refused by a broken database: replayed, each saga is paid once and told once."""
    dice = random.Random(SEED)
    sys.stdout.write(f"\nSEED={SEED} KILLS={KILLS} orders={ORDERS}\n")
    known = short_stack.known
    with _broken(known.payment_database_url, "payments", "amount < 0"):
        orders = [short_stack.checkout()[1] for _ in range(ORDERS)]
        polling.eventually(lambda: _all_dead(short_stack, topology.PAYMENT_QUEUE), 150)
    saga_ids = [order["saga_id"] for order in orders]

    with _broken(known.order_database_url, "sagas", "state <> 'paid'"):
        _killed_again_and_again(short_stack, topology.PAYMENT_QUEUE, dice)
        polling.eventually(lambda: _all_dead(short_stack, topology.ORDER_QUEUE), 150)
    _killed_again_and_again(short_stack, topology.ORDER_QUEUE, dice)

    for saga_id in saga_ids:
        short_stack.reached(saga_id, "notified")
    assert set(_dead(short_stack).values()) == {0}
    assert _runs(short_stack).count("broken_off") >= KILLS, "a replay that ended before it was killed proves nothing"
    short_stack.verified()
    before = _money_and_mails(short_stack, saga_ids)
    assert before == [(["charge"], "notified")] * ORDERS
    for queue in QUEUES:
        assert _answer(short_stack, *_replay(queue))[0] == 3, "nothing is left to replay"
    assert _money_and_mails(short_stack, saga_ids) == before
    short_stack.verified()
