"""Logs, traces and metrics: one JSON line per request or message, one trace id from the HTTP request to the mail."""

import functools
import json
import logging
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import prometheus_client
import structlog
from opentelemetry import context, trace
from opentelemetry.sdk import resources
from opentelemetry.sdk import trace as sdk
from opentelemetry.trace.propagation import tracecontext

from sagapost_chassis import privacy, sink

_PROPAGATOR: Final = tracecontext.TraceContextTextMapPropagator()
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

# without the frames' variables: they hold customers' addresses
_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20))

_OURS: Final = frozenset({"at", "level", "service", "event", "trace_id", "duration_ms", "outcome", "attempt", "order_id", "fingerprint"})

log: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()

HANDLED: Final = prometheus_client.Histogram(
    "sagapost_handled_seconds", "Requests and messages by name and outcome, in seconds", ["kind", "name", "outcome"]
)


def configure(service: str, level: str = "info") -> None:
    """Set up JSON logs on standard error and the tracer of this process, once, from main.

    From then on no log call raises or waits: what cannot be made a line of, or be written, is dropped and counted (`sink.LOST`).
    """
    lines = _Lines(sink.standard_error(functools.partial(_lost, service)))
    structlog.configure(
        processors=[_sure],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(level, 20)),
        logger_factory=lambda *_: lines,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
    trace.set_tracer_provider(sdk.TracerProvider(resource=resources.Resource.create({"service.name": f"sagapost-{service}"})))


class _Lines:
    """The end of structlog's chain: a method for each level, all of which write the finished line."""

    def __init__(self, written_to: sink.Sink) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = written_to.write


def _lost(service: str, number: int) -> str:
    line = {"at": datetime.now(UTC).isoformat(), "level": "warning", "service": service, "event": "log.lines_lost", "number": number}
    return json.dumps(line)


def _sure(logger: object, name: str, event: structlog.typing.EventDict) -> str:
    """Return the line of an event; one that no line can be made of is dropped and counted.

    Raises:
        structlog.DropEvent: structlog's own word for "write nothing", which no caller sees.

    """
    made: Any = event
    try:
        for step in _STEPS:
            made = step(logger, name, made)
        return str(made)
    except Exception as exc:  # a value that cannot be shown, for instance; who logs must go on
        sink.LOST.inc()
        raise structlog.DropEvent from exc


class _Libraries(logging.Handler):
    """Turns what libraries log into lines of ours, so that standard error carries JSON and nothing else."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record as a warning or an error."""
        write = log.error if record.levelno >= logging.ERROR else log.warning
        try:
            write("library.logged", logger=record.name, text=record.getMessage()[:500], exc_info=record.exc_info or None)
        except Exception:  # arguments that do not fit the text, for instance: who logs must go on
            sink.LOST.inc()


def first_line(exc: BaseException) -> str:
    """Say what went wrong without what PostgreSQL adds on further lines: the failing row, with whatever stands in it."""
    return str(exc).partition("\n")[0]


def _first_lines(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for found in event.get("exception", ()):
        found["exc_value"] = found["exc_value"].partition("\n")[0]
    return event


def _scrub(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Whatever a path, a header, a mail server or a library put into a line: no address and no card number leaves this process in it."""
    return {key: value if key in _OURS else privacy.cleaned(value) for key, value in event.items()}


def _add_trace(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        event.setdefault("trace_id", f"{current.trace_id:032x}")
    return event


_STEPS: Final[tuple[structlog.typing.Processor, ...]] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    _add_trace,
    _TRACEBACKS,
    _first_lines,
    _scrub,
    structlog.processors.JSONRenderer(),
)


def current_traceparent() -> str | None:
    """Give the W3C traceparent of the running span, or None outside of any."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


def current_trace_id() -> str | None:
    """Give the 32 hexadecimal digits of the running trace, or None outside of any."""
    current = trace.get_current_span().get_span_context()
    return f"{current.trace_id:032x}" if current.is_valid else None


@contextmanager
def span(name: str, kind: trace.SpanKind, traceparent: str | None) -> Generator[None]:
    """Run the block in a span that continues `traceparent` when there is a valid one."""
    parent = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else context.Context()
    with trace.get_tracer("sagapost").start_as_current_span(name, context=parent, kind=kind):
        yield


@contextmanager
def canonical(event: str, kind: str, name: str, **fields: object) -> Generator[dict[str, object]]:
    """Log one line for what the block handled; the block adds to the yielded fields, `outcome` among them."""
    started = time.perf_counter()
    line: dict[str, object] = {"outcome": "ok", **fields}
    try:
        yield line
    except BaseException:
        line["outcome"] = "error"
        raise
    finally:
        elapsed_s = time.perf_counter() - started
        HANDLED.labels(kind, name, str(line["outcome"])).observe(elapsed_s)
        log.info(event, name=name, duration_ms=round(elapsed_s * 1000, 1), **line)


def headers_of(headers: Mapping[str, object], name: str) -> str | None:
    """Read one text header; brokers hand out str or bytes."""
    value = headers.get(name)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None
