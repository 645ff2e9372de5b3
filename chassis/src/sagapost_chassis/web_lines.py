"""One log line and its metrics for each HTTP request: which route, whose, how it ended; it must not know what is served."""

import contextlib
import re
import time
from collections.abc import Generator, Mapping, MutableMapping
from typing import Any, Final

import prometheus_client

from sagapost_chassis import telemetry

_LINE: Final = "sagapost.line"
_PARAMETER: Final = re.compile(r"\{(\w+):\w+\}")
_UNROUTED: Final = "unrouted"  # not the path: a label has few values
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REFUSALS: Final = prometheus_client.Counter(
    "sagapost_refusals", "Requests that were not done, by the type of the problem that was answered", ["reason"]
)
ANSWERS: Final = prometheus_client.Counter("sagapost_http_answers", "Answers by route and class of the status", ["name", "status"])
WAITED: Final = prometheus_client.Histogram(
    "sagapost_waited_seconds",
    "Long polls and streams by route, in seconds: how long they waited is no latency",
    ["name"],
    buckets=(0.1, 1, 5, 10, 15, 20, 30, 60, 300, 900),
)

Scope = MutableMapping[str, Any]


def note(scope: Mapping[str, Any], **fields: object) -> None:
    """Add fields to the line of a request: `client` and `key_id`, `problem` (the type that is answered), `waits` for polls and streams."""
    line: dict[str, object] = (dict(scope).get("extensions") or {}).get(_LINE, {})
    line.update({name: value for name, value in fields.items() if value is not None})


@contextlib.contextmanager
def observed(scope: Scope) -> Generator[dict[str, Any]]:
    """Write the line and count the answer when the block ends; the block sets `status` when the answer begins."""
    begun_s = time.perf_counter()
    line: dict[str, Any] = {}
    scope["extensions"] = {**(scope.get("extensions") or {}), _LINE: line}
    try:
        yield line
    except BaseException:
        line["failed"] = True
        raise
    finally:
        _written(scope, line, time.perf_counter() - begun_s)


def _written(scope: Scope, line: dict[str, Any], elapsed_s: float) -> None:
    name, status = _name(scope), line.get("status")
    failed, waits, problem = line.pop("failed", False), line.pop("waits", False), line.pop("problem", None)
    outcome = "error" if failed or (status or 0) >= 500 else "gone" if status is None else "refused" if status >= 400 else "ok"
    if waits and outcome == "ok":
        WAITED.labels(name).observe(elapsed_s)
    else:
        telemetry.HANDLED.labels("http", name, outcome).observe(elapsed_s)
    if status is not None:
        ANSWERS.labels(name, f"{status // 100}xx").inc()
    if outcome in {"refused", "error"}:
        REFUSALS.labels(problem or str(status)).inc()
        line["reason"] = problem
    path = str(scope["path"])[:200]
    telemetry.log.info("request.handled", name=name, duration_ms=round(elapsed_s * 1000, 1), outcome=outcome, path=path, **line)


def _name(scope: Scope) -> str:
    template = scope.get("path_template")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    return method + " " + (_PARAMETER.sub(r"{\1}", template) if template else _UNROUTED)
