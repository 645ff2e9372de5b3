"""One private RabbitMQ node with an epmd of its own as child processes, on 127.0.0.1 only; knows no exchange and no queue."""

import hashlib
import os
import pathlib
import secrets
import signal
import time
from typing import Final

import msgspec

from sagapost_sandbox import accounts, apt, errors, management, packages, processes

HOST: Final = "127.0.0.1"
ACCOUNT: Final = "rabbitmq"
DEVELOPMENT: Final = ("ecommerce", "ecommerce123")
START_TIMEOUT_S: Final = 90.0
# Version 3.10 has closed its listeners and stores within 0.1 s and then idles for 6 s. What it holds is safe by then, and before:
# a quorum queue's log is on disk when a message is confirmed.
STOP_TIMEOUT_S: Final = 2.0
EPMD_STOP_S: Final = 5.0
_RETRY_S: Final = 0.05
# What a process of the Erlang machine writes when it crashes holds its state and its last message, a customer's address among them.
# RabbitMQ's own lines all have its domain; those reports have the library's, or none. Without blanks: the start script splits at them.
DISCREET: Final = (
    "-kernel logger [{filters,log,[{otp,{fun'logger_filters':domain/2,{stop,sub,[otp]}}},"
    "{no_domain,{fun'logger_filters':domain/2,{stop,undefined,[]}}}]}]"
)
_CONFIG: Final = """\
listeners.tcp.1 = 127.0.0.1:{amqp_port}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management_port}
default_vhost = /
default_user = {user}
default_pass = {password}
default_user_tags.administrator = true
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
disk_free_limit.absolute = 50MB
raft.wal_max_size_bytes = 67108864
collect_statistics_interval = 1000
management.rates_mode = basic
log.console = true
log.console.level = info
"""
_TLS: Final = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.cacertfile = {certificate}
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
"""


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """A listener for amqps, with PEM files of its certificate and key."""

    port: int
    certificate: pathlib.Path
    key: pathlib.Path


class Node:
    """A broker with its data in `folder`; the user of `credentials` (name, password) is made at the first start."""

    def __init__(
        self,
        folder: pathlib.Path,
        amqp_port: int,
        management_port: int,
        epmd_port: int,
        dist_port: int,
        *,
        credentials: tuple[str, str] = DEVELOPMENT,
        tls: Tls | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.amqp_port = amqp_port
        self.epmd_port = epmd_port
        self.dist_port = dist_port
        self.tls = tls
        self.management = management.Management(host=HOST, port=management_port, user=credentials[0], password=credentials[1])
        # The short name with @localhost needs no entry for this machine's name anywhere.
        self.nodename = f"sagapost-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:10]}@localhost"
        self.log = self.folder / "server.log"
        self._record = self.folder / "server.pid"
        self._epmd_record = self.folder / "epmd.pid"
        self._process: processes.Process | None = None
        self._epmd: processes.Process | None = None

    @property
    def pid(self) -> int | None:
        """The Erlang machine's pid, None when it does not run."""
        return self._process.pid if self.running() and self._process else None

    @property
    def version(self) -> str:
        """Version of the installed broker."""
        return self._binaries().version

    def amqp_url(self, vhost: str = "/") -> str:
        """Build the AMQP URL of a virtual host."""
        return management.amqp_url(HOST, self.amqp_port, self.management.user, self.management.password, vhost)

    def create_vhost(self, name: str) -> str:
        """Make a virtual host, unless it is there; return its AMQP URL."""
        management.create_vhost(self.management, name)
        return self.amqp_url(name)

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with all its queues."""
        management.delete_vhost(self.management, name)

    def running(self) -> bool:
        """Whether the node runs, started by us or by an earlier run of ours."""
        if self._process is None or not self._process.running():
            self._process = processes.load(self._record)
        return self._process is not None

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it, unless it runs, and wait until both AMQP and the management interface answer.

        Raises:
            MissingPackagesError: there are no binaries.
            PermissionsError: the data belong to another user, or cannot be reached.
            StartError: it did not come up; the end of its log says why.

        """
        if self.running() and self._answers(timeout_s):
            return
        binaries = self._binaries()
        account = accounts.unprivileged(self.folder, ACCOUNT)
        accounts.own_folder(self.folder, account)
        self._write_files(account)
        self._start_epmd(binaries, account)
        self._process = processes.spawn([binaries.server], log=self.log, cwd=self.folder, env=self._environ(binaries), account=account)
        processes.save(self._process, self._record)
        if not self._answers(timeout_s):
            self._stop_epmd()
            raise errors.StartError(f"RabbitMQ ended while starting on port {self.amqp_port}: {processes.tail(self.log)}")

    def stop(self) -> None:
        """Shut down in order, then stop epmd; nothing when neither runs."""
        if self.running() and self._process:
            self._process.stop(STOP_TIMEOUT_S)
        self._record.unlink(missing_ok=True)
        self._stop_epmd()

    def kill(self) -> None:
        """SIGKILL for the Erlang machine and its helpers, as a fault; epmd stays for the next start."""
        if self.running() and self._process:
            self._process.kill()

    def pause(self) -> None:
        """Stop every process of it where it stands, as a fault: connections stay open, and nobody answers."""
        if self.running() and self._process:
            self._process.send_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._process:
            self._process.send_all(signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def _binaries(self) -> packages.RabbitBinaries:
        found = packages.find_rabbitmq()
        if found is None:
            wanted = (packages.RABBITMQ_PACKAGE,)
            raise errors.MissingPackagesError(wanted, apt.command(wanted))
        return found

    def _write_files(self, account: accounts.Account | None) -> None:
        config = _CONFIG.format(
            amqp_port=self.amqp_port, management_port=self.management.port, user=self.management.user, password=self.management.password
        )
        if self.tls is not None:
            inside = {"certificate": self.folder / "server.crt", "key": self.folder / "server.key"}
            accounts.write(inside["certificate"], self.tls.certificate.read_text(encoding="ascii"), account)
            accounts.write(inside["key"], self.tls.key.read_text(encoding="ascii"), account)
            config += _TLS.format(port=self.tls.port, **inside)
        accounts.write(self.folder / "rabbitmq.conf", config, account)
        accounts.write(self.folder / "advanced.config", "[].\n", account)
        accounts.write(self.folder / "enabled_plugins", "[rabbitmq_management].\n", account)
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            accounts.write(cookie, secrets.token_hex(20), account, 0o400)

    def _environ(self, binaries: packages.RabbitBinaries) -> dict[str, str]:
        """Name every path and port, so that nothing of the machine's own /etc/rabbitmq or default node takes part."""
        inside = {
            "RABBITMQ_CONFIG_FILE": "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": "advanced.config",
            "RABBITMQ_CONF_ENV_FILE": "no-such-file",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": "generated",
            "RABBITMQ_MNESIA_BASE": "mnesia",
            "RABBITMQ_LOG_BASE": "log",
            "RABBITMQ_PID_FILE": "beam.pid",
            "ERL_CRASH_DUMP": "erl_crash.dump",
        }
        return {name: str(self.folder / file) for name, file in inside.items()} | {
            "PATH": f"{binaries.erl.parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "RABBITMQ_NODENAME": self.nodename,
            "RABBITMQ_USE_LONGNAME": "false",
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_LOGS": "-",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            # Two schedulers that sleep when idle; the node must not start an epmd that would outlive it.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none -start_epmd false -kernel inet_dist_use_interface {127,0,0,1} "
            + DISCREET,
            # rabbitmq-server then becomes the Erlang machine instead of a shell that watches one: signals arrive where they should.
            "detached": "true",
        }

    def _start_epmd(self, binaries: packages.RabbitBinaries, account: accounts.Account | None) -> None:
        self._epmd = processes.load(self._epmd_record)
        if self._epmd is None:
            self._epmd = processes.spawn(
                [binaries.epmd, "-address", HOST, "-port", str(self.epmd_port)],
                log=self.folder / "epmd.log",
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder)},
                account=account,
            )
            processes.save(self._epmd, self._epmd_record)

    def _stop_epmd(self) -> None:
        epmd = self._epmd or processes.load(self._epmd_record)
        if epmd is not None:
            epmd.stop(EPMD_STOP_S, signal.SIGTERM)
        self._epmd = None
        self._epmd_record.unlink(missing_ok=True)

    def _answers(self, timeout_s: float) -> bool:
        """Wait until it takes connections; False when it ended instead, as one does that was just killed by somebody."""
        deadline = time.monotonic() + timeout_s
        while not (management.answers(self.management) and management.speaks_amqp(HOST, self.amqp_port)):
            if not self.running():
                return False
            if time.monotonic() > deadline:
                raise errors.StartError(f"RabbitMQ on port {self.amqp_port} answered nobody for {timeout_s:.0f} s; see {self.log}")
            time.sleep(_RETRY_S)
        return True
