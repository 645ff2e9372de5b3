"""The JSON of `status`: every service with its address and readiness now; asks, and changes nothing."""

import concurrent.futures

import msgspec

from sagapost_ops import probes, state
from sagapost_sandbox import processes


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One service as `status` shows it; no pid when its process is gone, no mode and no metrics for what is none of our services."""

    name: str
    url: str
    port: int
    pid: int | None
    ready: bool
    mode: str | None
    version: str
    metrics_url: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All services of a stack."""

    services: tuple[Line, ...]


def status(found: state.State) -> Status:
    """Ask every service at once."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(found.services))) as pool:
        return Status(services=tuple(pool.map(_line, found.services)))


def _line(service: state.Service) -> Line:
    record = service.record
    alive = record is not None and processes.identify(record.pid) == record
    return Line(
        name=service.name,
        url=service.url,
        port=service.port,
        pid=record.pid if record is not None and alive else None,
        ready=alive and probes.ready(service.kind, service.port),
        mode=probes.mode(service.port) if alive and service.kind == "health" else None,
        version=service.version,
        metrics_url=None if service.metrics_port is None else f"http://localhost:{service.metrics_port}/metrics",
    )


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of Prometheus's HTTP service discovery."""

    targets: tuple[str, ...]
    labels: dict[str, str]


def discovery(found: state.State) -> tuple[Target, ...]:
    """Return where Prometheus finds the metrics of each process; replicas of one service differ by `process`."""
    return tuple(
        Target(
            targets=(f"127.0.0.1:{service.metrics_port}",),
            labels={"service": service.name.rstrip("0123456789").rstrip("-"), "process": service.name},
        )
        for service in found.services
        if service.metrics_port is not None
    )
