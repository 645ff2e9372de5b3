"""What can go wrong while the outside world is set up; every message is one sentence that says what to do.

SandboxError
├── MissingPackagesError     a server's binaries are not installed; carries the exact command
├── StartError               a child process did not come up; carries the end of its log
├── StopError                a child process did not go away
├── PermissionsError         the unprivileged user cannot reach the data folder
├── VersionMismatchError     the data on disk belong to another major version
├── NoEngineError            tests were asked for containers and there is nothing to run them
├── NoNamespaceError         this user, or this kernel, may not make a network namespace
└── ManagementError          RabbitMQ's management interface refused a request
"""


class SandboxError(Exception):
    """Base of every error of this package."""


class MissingPackagesError(SandboxError):
    """Binaries are missing and could not be installed; `command` installs them."""

    def __init__(self, missing: tuple[str, ...], command: str, reason: str = "") -> None:
        self.missing = missing
        self.command = command
        because = f" ({reason})" if reason else ""
        super().__init__(f"{' and '.join(missing)} not installed{because}; install with: {command}")


class StartError(SandboxError):
    """A child process did not become ready in time."""


class StopError(SandboxError):
    """A child process survived SIGKILL."""


class PermissionsError(SandboxError):
    """The user that a server must run as cannot traverse the path to its data."""


class VersionMismatchError(SandboxError):
    """The data folder was made by another major version of the server."""


class NoEngineError(SandboxError):
    """No container engine answers."""


class NoNamespaceError(SandboxError):
    """No network namespace can be made."""


class ManagementError(SandboxError):
    """RabbitMQ's management interface answered with an error."""
