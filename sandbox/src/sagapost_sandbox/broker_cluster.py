"""Three private RabbitMQ nodes that form one cluster, on 127.0.0.1; knows no exchange and no queue."""

import concurrent.futures
import pathlib
import secrets
from collections.abc import Sequence
from typing import Final

from sagapost_sandbox import accounts, errors, packages, ports, rabbitmq

SIZE: Final = 3
# RabbitMQ 3.10.8: a node that was killed and came back waited 90 s in vain for tables that both peers held, once in some forty runs.
_TABLES_S: Final = 60.0
_CONFIG: Final = """\
cluster_formation.peer_discovery_backend = classic_config
cluster_partition_handling = pause_minority
cluster_keepalive_interval = 1000
"""


class Cluster:
    """Nodes that find each other at their first start, and again after each end; quorum queues have a replica on each."""

    def __init__(self, folder: pathlib.Path) -> None:
        epmd, *chosen = ports.trial(1 + 3 * SIZE)
        cookie = secrets.token_hex(20)
        self.nodes = [_Member(folder / f"node-{number}", chosen[3 * number : 3 * number + 3], epmd, cookie) for number in range(SIZE)]
        for node in self.nodes:
            node.peers = [peer.nodename for peer in self.nodes]

    def start(self) -> None:
        """Start the nodes, all at once: each waits for the others; returns when all answer.

        Raises:
            StartError: one did not come up.

        """
        self.nodes[0].start_names()
        with concurrent.futures.ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(rabbitmq.Node.start, self.nodes))

    def kill(self) -> None:
        """SIGKILL for every node, then the end of their name server."""
        for node in self.nodes:
            node.kill()
        for node in self.nodes:
            node.stop()

    def amqp_url(self, vhost: str = "/") -> str:
        """Give an address that names all nodes."""
        one = self.nodes[0]
        hosts = ",".join(f"{rabbitmq.HOST}:{node.amqp_port}" for node in self.nodes)
        return one.amqp_url(vhost).replace(f"{rabbitmq.HOST}:{one.amqp_port}", hosts)


class _Member(rabbitmq.Node):
    """A node that shares cookie and name server with its peers."""

    peers: list[str]

    def __init__(self, folder: pathlib.Path, own: Sequence[int], epmd: int, cookie: str) -> None:
        amqp, management, dist = own
        super().__init__(folder, amqp, management, epmd, dist)
        self._cookie = cookie

    def start(self, timeout_s: float = rabbitmq.START_TIMEOUT_S) -> None:
        """Start it beside its peers, once more when it waits in vain for the tables that they hold.

        Raises:
            StartError: it did not come up.

        """
        try:
            super().start(_TABLES_S)
        except errors.StartError:
            if not self.running():
                raise
            self.kill()
            super().start(timeout_s)

    def start_names(self) -> None:
        """Start the name server of all nodes; it ends with this one's stop()."""
        account = accounts.unprivileged(self.folder, rabbitmq.ACCOUNT)
        accounts.own_folder(self.folder, account)
        super()._start_epmd(self._binaries(), account)

    def _start_epmd(self, binaries: packages.RabbitBinaries, account: accounts.Account | None) -> None:
        """Leave it to the first node, whose name server is everybody's."""

    def _write_files(self, account: accounts.Account | None) -> None:
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            accounts.write(cookie, self._cookie, account, 0o400)
        super()._write_files(account)
        config = (self.folder / "rabbitmq.conf").read_text(encoding="ascii") + _CONFIG
        config += "".join(f"cluster_formation.classic_config.nodes.{number} = {peer}\n" for number, peer in enumerate(self.peers, 1))
        accounts.write(self.folder / "rabbitmq.conf", config, account)
