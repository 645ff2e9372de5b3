import os
import pathlib
import signal
from collections.abc import Callable, Generator
from typing import Any

import psycopg
import pytest

from sagapost_sandbox import databases, errors, management, ports, postgres, processes, rabbitmq
from sagapost_sandbox.testing import servers


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Generator[postgres.Cluster]:
    """Make a cluster below a folder of mode 0700, which the server's user cannot enter when we are root."""
    made = postgres.Cluster(tmp_path / "pg", *ports.trial(1))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def node(tmp_path: pathlib.Path) -> Generator[rabbitmq.Node]:
    """Make a node below a folder of mode 0700, which the server's user cannot enter when we are root."""
    made = rabbitmq.Node(tmp_path / "mq", *ports.trial(4))
    try:
        made.start()
        yield made
    finally:
        made.kill()
        made.stop()


def test_each_test_has_a_clone_of_the_migrated_template(order_db: str, payment_db: str) -> None:
    """Both databases of a test are migrated and belong to the service's own role."""
    with psycopg.connect(order_db) as orders, psycopg.connect(payment_db) as payments:
        counted = orders.execute("SELECT count(*) FROM products").fetchone()
        owner = payments.execute("SELECT current_user").fetchone()

    assert counted is not None
    assert counted[0] >= 3
    assert owner == ("payment_user",)


def test_each_test_has_a_virtual_host_with_the_topology(vhost: str, broker: servers.Broker) -> None:
    """The work queues are there, and empty."""
    name = vhost.rpartition("/")[2]

    queues = management.request(broker.management, "GET", f"/api/queues/{name}")

    assert isinstance(queues, list)
    assert {"payment_service_queue", "email_service_queue", "order_updates_queue"} <= {queue["name"] for queue in queues}


def test_a_cluster_survives_kill_9_with_what_was_committed(cluster: postgres.Cluster) -> None:
    """Killed as a whole, started again: the database is there; nobody but a password holder gets in."""
    dsn = cluster.create("somebody", "p w@/", "things")
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS one")

    cluster.kill()
    assert not cluster.running()
    cluster.start()

    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT one FROM kept").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(cluster.dsn("somebody", "wrong", "things"))


def test_a_cluster_killed_by_somebody_else_starts_again(cluster: postgres.Cluster) -> None:
    """The postmaster alone is killed, its backends are orphans for a moment: the next start waits for them."""
    pid = cluster.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    cluster.start()

    assert cluster.pid != pid


def test_a_stale_postmaster_pid_with_somebody_elses_number_does_not_matter(cluster: postgres.Cluster) -> None:
    """After kill -9 the number in the file may belong to any process by now."""
    cluster.kill()
    (cluster.data / "postmaster.pid").write_text(f"{os.getpid()}\n{cluster.data}\n0\n{cluster.port}\n\n\n")

    cluster.start()

    assert cluster.running()


def test_creating_a_role_and_database_twice_is_the_same_as_once(cluster: postgres.Cluster) -> None:
    """Idempotent: every start may do it."""
    first, second = (cluster.create("somebody", password, "things") for password in ("old", "new"))

    with psycopg.connect(second) as conn:
        assert conn.execute("SELECT current_database()").fetchone() == ("things",)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(first)


def test_another_handle_finds_and_stops_the_running_cluster(cluster: postgres.Cluster) -> None:
    """`down` is another process than `up`."""
    other = postgres.Cluster(cluster.folder, cluster.port)
    assert other.pid == cluster.pid

    other.stop()

    assert not cluster.running()
    assert ports.is_free(cluster.port)


def test_data_of_another_major_version_are_named(cluster: postgres.Cluster) -> None:
    """The sentence names both versions and both ways out."""
    cluster.stop()
    (cluster.data / "PG_VERSION").write_text("9\n")

    with pytest.raises(errors.VersionMismatchError, match=r"PostgreSQL 9, .*postgresql-9.*--purge"):
        cluster.start()


def test_a_taken_port_fails_the_start_with_the_servers_own_words(cluster: postgres.Cluster, tmp_path: pathlib.Path) -> None:
    """Two clusters on one port: the second says why it cannot, and leaves no process."""
    second = postgres.Cluster(tmp_path / "second", cluster.port)

    with pytest.raises(errors.StartError):
        second.start()

    assert not second.running()


def test_databases_are_cloned_and_dropped_under_their_users(cluster: postgres.Cluster) -> None:
    """A clone has the template's content; dropping it ends the sessions that still use it."""
    with psycopg.connect(cluster.create("somebody", "x", "mother")) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS one")
    databases.freeze(cluster.admin_dsn, "mother")

    databases.clone(cluster.admin_dsn, "mother", "child", "somebody")
    with psycopg.connect(cluster.dsn("somebody", "x", "child"), autocommit=True) as conn:
        assert conn.execute("SELECT one FROM kept").fetchone() == (1,)
        databases.drop(cluster.admin_dsn, "child")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")


def test_a_node_lives_dies_and_comes_back(node: rabbitmq.Node, eventually: Callable[..., Any]) -> None:
    """A virtual host survives kill -9; stopping leaves no process and no port, epmd's neither."""
    node.create_vhost("kept / quoted")
    first = node.pid
    node.kill()
    assert not node.running()

    node.start()

    assert node.pid != first
    assert {vhost["name"] for vhost in _vhosts(node)} == {"/", "kept / quoted"}
    node.delete_vhost("kept / quoted")
    node.delete_vhost("kept / quoted")
    assert [vhost["name"] for vhost in _vhosts(node)] == ["/"]
    node.stop()
    eventually(lambda: not _processes_in(node.folder))
    assert all(ports.is_free(port) for port in (node.amqp_port, node.management.port, node.epmd_port, node.dist_port))


def test_a_private_broker_may_be_killed_beside_the_shared_one(private_broker: servers.Broker, broker: servers.Broker) -> None:
    """Each has its own name, ports and virtual hosts; the private one comes back under its old address with what it had."""
    private_broker.create_vhost("only-here")

    private_broker.kill()
    private_broker.start()

    assert {vhost["name"] for vhost in _vhosts(private_broker)} == {"/", "only-here"}
    assert "only-here" not in {vhost["name"] for vhost in _vhosts(broker)}


def test_a_private_database_server_may_be_killed_beside_the_shared_one(private_databases: servers.Databases, order_db: str) -> None:
    """Killed and started, it is under its old address with what was committed; the shared one noticed nothing."""
    dsn = private_databases.create("somebody", "x", "things")

    private_databases.kill()
    private_databases.start()

    for connection_string in (dsn, order_db):
        with psycopg.connect(connection_string) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://user:p%2Fw@broker:1234", management.Management(host="broker", port=1234, user="user", password="p/w")),
        ("https://user:pw@broker", management.Management(host="broker", port=15671, user="user", password="pw", tls=True)),
        ("http://broker", management.Management(host="broker", port=15672, user="guest", password="guest")),
    ],
)
def test_a_management_url_says_where_how_and_who(url: str, wanted: management.Management) -> None:
    """Quoted credentials, the usual port of each scheme, the broker's own default user."""
    assert management.of_url(url) == wanted


def _vhosts(node: servers.Broker) -> list[dict[str, Any]]:
    listed = management.request(node.management, "GET", "/api/vhosts")
    assert isinstance(listed, list)
    return sorted(listed, key=lambda vhost: str(vhost["name"]))


def _processes_in(folder: pathlib.Path) -> list[int]:
    found: list[int] = []
    for pid in processes.pids():
        try:
            inside = pathlib.Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder)
        except OSError:
            continue
        if inside:
            found.append(pid)
    return found
