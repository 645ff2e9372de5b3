"""A wire between two network namespaces of its own, on which packets vanish when told to; it knows no protocol and no server.

Nothing of this machine's own network is touched: both ends, their addresses and what is dropped lie in the namespaces, and go with them.
Unlike with a proxy that swallows bytes, nobody acknowledges what is sent, so that TCP's own timeouts decide.
"""

import os
import pathlib
import shutil
import socket
import sys
from collections.abc import Sequence
from typing import Final, Self

from sagapost_sandbox import apt, errors, processes
from sagapost_sandbox.testing import polling

NEAR: Final = "10.77.0.1"
FAR: Final = "10.77.0.2"  # never cut
_FAR_MAC: Final = "02:00:00:00:00:02"
_ESTABLISHED: Final = "01"  # in /proc/net/tcp, proc(5)
_LIVES_S: Final = 3600  # what a killed test leaves goes by itself
_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_HAND_OVER: Final = """
import socket, sys
made = socket.create_server((sys.argv[1], 0)) if sys.argv[1] else socket.socket()
socket.send_fds(socket.socket(fileno=3), [b"."], [made.fileno()])
"""


class Wire:
    """While the `with` block runs, `inside` put before a command line runs it at the near end; `listen` opens sockets at the far end."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._holders: list[processes.Process] = []
        self._joining: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for holder in self._holders:
            holder.kill()

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command at the near end."""
        return self._enter(0)

    def listen(self, address: str) -> socket.socket:
        """Open a listening socket at the far end, on an address of the wire's network that is made for it."""
        if address != FAR:
            self.mend(address)
        return self._opened(1, address)

    def client(self) -> socket.socket:
        """Open an unconnected socket at the near end."""
        return self._opened(0, "")

    def cut(self, address: str) -> None:
        """Let every packet to and from an address of the far end vanish: no answer, no error, on connections and without."""
        self._ip(1, "address", "del", f"{address}/32", "dev", "wire")

    def mend(self, address: str) -> None:
        """Let packets through again."""
        self._ip(1, "address", "replace", f"{address}/32", "dev", "wire")
        # a neighbour that is asked for would stop answering when its address is cut, and the kernel would say so
        self._ip(0, "neighbour", "replace", address, "lladdr", _FAR_MAC, "dev", "wire", "nud", "permanent")

    def connections(self, address: str) -> frozenset[int]:
        """Give the near ports of the connections to an address of the far end that nobody at the near end has given up."""
        table = pathlib.Path(f"/proc/{self._holders[0].pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        remote = f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}"
        rows = (line.split() for line in table)
        return frozenset(int(row[1].partition(":")[2], 16) for row in rows if row[2].startswith(remote) and row[3] == _ESTABLISHED)

    def _build(self) -> None:
        if shutil.which("ip", path=_PATH) is None and os.geteuid() == 0:
            apt.install(("iproute2",))
        missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name, path=_PATH) is None]
        if missing:
            raise errors.NoNamespaceError(f"{' and '.join(missing)} not installed; install with: {apt.command(('iproute2', 'util-linux'))}")
        self._near()
        self._hold([*self._enter(0), "unshare", "--net"])
        self._ip(0, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "address", _FAR_MAC, "netns", str(self._holders[1].pid))
        for end, address in enumerate((NEAR, FAR)):
            self._ip(end, "address", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                self._ip(end, "link", "set", device, "up")

    def _near(self) -> None:
        """Make the first namespace: as root, else, or where root may not, as the root of a user namespace."""
        said: list[str] = []
        for how, joining in (
            (("--net",), ("--net",)),
            (("--user", "--map-root-user", "--net"), ("--user", "--preserve-credentials", "--net")),
        ):
            try:
                self._joining = joining
                self._hold(["unshare", *how])
            except errors.StartError as exc:
                said.append(str(exc))
            else:
                return
        raise errors.NoNamespaceError(
            f"no network namespace can be made ({'; '.join(said)}): run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN, "
            "or allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
        )

    def _hold(self, unshare: Sequence[str]) -> None:
        """Start a process whose only purpose is its namespace."""
        log = self._folder / f"namespace-{len(self._holders)}.log"
        log.unlink(missing_ok=True)
        holder = processes.spawn([*unshare, "sleep", str(_LIVES_S)], log=log, cwd=pathlib.Path("/"), env={"PATH": _PATH})
        command = pathlib.Path(f"/proc/{holder.pid}/comm")

        polling.eventually(lambda: not holder.running() or command.read_text(encoding="utf-8") == "sleep\n")
        if not holder.running():
            raise errors.StartError(log.read_text(encoding="utf-8").strip().splitlines()[-1])
        self._holders.append(holder)

    def _enter(self, end: int) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self._holders[end].pid), *self._joining)

    def _ip(self, end: int, *arguments: str) -> None:
        done = processes.run([*self._enter(end), "ip", *arguments], env={"PATH": _PATH})
        if done.code:
            raise errors.NoNamespaceError(f"ip {' '.join(arguments)} failed: {done.output.strip()}")

    def _opened(self, end: int, address: str) -> socket.socket:
        """Have a socket made in a namespace and handed over; it stays a socket of that namespace."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(polling.DEADLINE_S)
            line = [*self._enter(end), sys.executable, "-c", _HAND_OVER, address]
            log = self._folder / "socket.log"
            maker = processes.spawn(line, log=log, cwd=pathlib.Path("/"), env={"PATH": _PATH}, sockets=[("handover", theirs)])
            theirs.close()
            _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
            maker.wait(polling.DEADLINE_S)
        return socket.socket(fileno=descriptor)
