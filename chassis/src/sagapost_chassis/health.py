"""Health over HTTP: live never touches a dependency, ready asks the ones it is given."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import litestar
import msgspec

from sagapost_chassis import errors, telemetry

CHECK_S: Final = 2.0
Check = Callable[[], Awaitable[bool]]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`mode` is "development" or "production", `status` is "ok" or "unready"; `failing` and `degraded` name dependencies.

    `reasons` says of some of them what is wrong.
    """

    service: str
    mode: str
    status: str = "ok"
    failing: list[str] = []
    degraded: list[str] = []
    reasons: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


async def _in_time(check: Check) -> bool:
    """Give up after `CHECK_S`, even on a check that takes its time to end: psycopg waits for a cancelled query's connection to die."""
    task = asyncio.ensure_future(check())
    if not (await asyncio.wait({task}, timeout=CHECK_S))[0]:
        task.cancel()
        task.add_done_callback(_forget)
        raise TimeoutError
    return task.result()


def _forget(task: asyncio.Future[bool]) -> None:
    if not task.cancelled():
        task.exception()  # nobody waits for it any more


async def _failing(checks: Mapping[str, Check]) -> dict[str, str]:
    """Return the dependencies that failed, with what may be shown of the reason."""

    async def fault(name: str, check: Check) -> str | None:
        try:
            return None if await _in_time(check) else ""
        except Exception as exc:  # whatever is wrong with a dependency, the answer is "not ready"
            telemetry.log.warning("health.failed", dependency=name, reason=f"{type(exc).__name__}: {telemetry.first_line(exc)}")
            return str(exc) if isinstance(exc, errors.NotReadyError) else ""

    outcomes = await asyncio.gather(*(fault(name, check) for name, check in checks.items()))
    return {name: reason for name, reason in zip(checks, outcomes, strict=True) if reason is not None}


def routes(service: str, required: Mapping[str, Check], degrading: Mapping[str, Check] | None = None, *, mode: str) -> list[Any]:
    """Return the handlers of `GET /`, `/health`, `/health/live` and `/health/ready`; a failing `degrading` check only shows."""

    @litestar.get(["/", "/health/live"], sync_to_thread=False, opt={"quiet": True})
    def live() -> Health:
        """Say that the process runs."""
        return Health(service=service, mode=mode)

    @litestar.get(["/health/ready", "/health"], opt={"quiet": True})
    async def ready() -> litestar.Response[Health]:
        """Say whether the process can do its work."""
        failing, degraded = await asyncio.gather(_failing(required), _failing(degrading or {}))
        reasons = {name: reason for name, reason in (degraded | failing).items() if reason}
        body = Health(
            service=service,
            mode=mode,
            status="unready" if failing else "ok",
            failing=list(failing),
            degraded=list(degraded),
            reasons=reasons or msgspec.UNSET,
        )
        return litestar.Response(body, status_code=503 if failing else 200)

    return [live, ready]
