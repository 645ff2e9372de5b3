"""A whole stack of real processes for the fault tests: every service, one of them made to fail."""

import http.client
import json
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sagapost_ops import targets, verify
from sagapost_ops.invariants import outcome
from sagapost_sandbox import ports
from sagapost_sandbox.testing import polling, servers, services

CART = {"user_id": 1, "items": [{"product_id": 1, "quantity": 1, "price": "1299.99"}]}
Json = Any  # whatever the service answers
ENDED = {"notified", "compensated"}


class Stack:
    """Every service as a process, each on a port that it keeps across restarts."""

    def __init__(
        self,
        folder: pathlib.Path,
        environments: Mapping[str, Mapping[str, str]],
        known: targets.Targets,
        inside: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.known = known
        self._inside = inside or {}
        self._folder = folder
        self._environments = {name: {"SAGAPOST_PORT": str(ports.trial(1)[0]), **env} for name, env in environments.items()}
        for caller in ("gateway", "email"):
            self._environments[caller]["SAGAPOST_ORDER_URL"] = f"http://127.0.0.1:{self._environments['order']['SAGAPOST_PORT']}"
        self.running: dict[str, services.Service] = {}
        self.accepted: list[uuid.UUID] = []
        self.mail_gap_crashes = 0  # deaths between the mail server's 250 and the acknowledgement

    def start(self, name: str, crash: str = "") -> services.Service:
        """Start a service, told to die at `crash` when given; ready when this returns, unless it is to die."""
        module = name if "." in name else "sagapost_" + name.partition("-")[0]
        log = self._folder / f"{name}-{uuid.uuid4().hex[:6]}.log"
        env = {**self._environments[name], "SAGAPOST_CRASH": crash}
        service = services.Service(module, env, log, inside=self._inside.get(name, ()))
        self.running[name] = service
        return service

    def environment(self, name: str) -> Mapping[str, str]:
        """Give the variables a service is started with."""
        return self._environments[name]

    def change(self, name: str, variables: Mapping[str, str]) -> None:
        """Start a service with other variables from now on."""
        self._environments[name] |= variables

    def start_all(self) -> "Stack":
        """Start every service and wait until all are ready."""
        for name in self._environments:
            self.start(name)
        for service in self.running.values():
            service.wait_ready(60)
        return self

    def replace(self, name: str, crash: str = "") -> services.Service:
        """Stop a service as a deployment does and start it again, told to die at `crash`."""
        self.running[name].terminate()
        return self.start(name, crash)

    def stop(self) -> None:
        """Kill everything."""
        for service in self.running.values():
            service.kill()

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """Call the gateway; status 0 when the connection broke."""
        connection = http.client.HTTPConnection("127.0.0.1", self.running["gateway"].port, timeout=10)
        try:
            content = json.dumps(body) if body is not None else None
            kind = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, content, {**kind, **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def checkout(self, payment_method: str = "pm_card_ok") -> tuple[int, dict[str, Any]]:
        """Buy one laptop."""
        name = "".join(chr(ord("a") + int(digit, 16)) for digit in uuid.uuid4().hex)  # thirteen digits in a row may look like a card
        email = f"{name}@example.com"
        status, answer = self.call("POST", "/api/checkout", {**CART, "user_email": email, "payment_method": payment_method})
        if status == 202:
            self.accepted.append(uuid.UUID(answer["saga_id"]))
        return status, answer

    def cancel(self, order_id: int) -> int:
        """Ask for an order's cancellation, and give the status of the answer."""
        return self.call("POST", f"/api/orders/{order_id}/cancel")[0]

    def reached(self, saga_id: str, *wanted: str, deadline_s: float = 60) -> dict[str, Any]:
        """Wait until a saga is in one of these states, and give it."""

        def found() -> dict[str, Any] | None:
            status, saga = self.call("GET", f"/api/sagas/{saga_id}")
            return saga if status == 200 and saga["state"] in wanted else None

        return polling.eventually(found, deadline_s) or {}

    def provider_behaves(self, **behaviour: object) -> None:
        """Make the provider misbehave from now on; without arguments it behaves again."""
        _put(str(self.known.provider_url), "/v1/behaviour", behaviour)

    def mailbox_behaves(self, **behaviour: object) -> None:
        """Make the mail server misbehave from now on; without arguments it behaves again."""
        _put(str(self.known.mailbox_url), "/behaviour", behaviour)

    def traced_checkout(self, traceparent: str) -> dict[str, Any]:
        """Buy one laptop as part of the caller's trace."""
        status, answer = self.call("POST", "/api/checkout", {**CART, "user_email": "traced@example.com"}, traceparent=traceparent)
        assert status == 202
        self.accepted.append(uuid.UUID(answer["saga_id"]))
        return answer

    def ended(self, saga_id: str, deadline_s: float = 60) -> dict[str, Any]:
        """Wait until a saga has ended, and give it."""
        return self.reached(saga_id, *ENDED, deadline_s=deadline_s)

    def movements(self, saga_id: str | None = None) -> list[dict[str, Any]]:
        """Give what the provider's own ledger says, of a saga or of all."""
        return list(self._get(str(self.known.provider_url), f"/v1/ledger?reference={saga_id}" if saga_id else "/v1/ledger"))

    def mails(self, address: str) -> list[dict[str, Any]]:
        """Give the accepted mails to an address."""
        return [mail for mail in self.all_mails() if mail["To"][0]["Address"] == address]

    def all_mails(self) -> list[dict[str, Any]]:
        """Return every accepted mail, as the mailbox lists them."""
        mails: list[dict[str, Any]] = []
        while found := self._get(str(self.known.mailbox_url), f"/api/v1/messages?limit=1000&start={len(mails)}")["messages"]:
            mails += found
        return mails

    def mail_headers(self, address: str) -> dict[str, list[str]]:
        """Give the headers of the one mail to an address."""
        (mail,) = self.mails(address)
        found: dict[str, list[str]] = self._get(str(self.known.mailbox_url), f"/api/v1/message/{mail['ID']}/headers")
        return {name.title(): values for name, values in found.items()}

    def verified(self) -> verify.Report:
        """Check every invariant once the stack is quiet, and fail with what is violated."""
        expected = outcome.Expectations(duplicate_mails=self.mail_gap_crashes, accepted=tuple(self.accepted))
        report = verify.run(self.known, expected, settle_s=30)
        assert report.ok, [violation for found in report.invariants for violation in found.violations]
        return report

    def _get(self, url: str, path: str) -> Json:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        connection.request("GET", path)
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found


def _put(url: str, path: str, body: object) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("PUT", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status < 300, answer.read()
    connection.close()


def make(
    folder: pathlib.Path,
    urls: Mapping[str, str],
    amqp_url: str,
    broker: servers.Broker,
    changes: Mapping[str, Mapping[str, str]] | None = None,
    *,
    inside: Mapping[str, Sequence[str]] | None = None,
) -> Stack:
    """Put a stack together on these databases, this virtual host, and a provider and a mailbox of its own.

    `changes`: variables by service, beside or instead of the usual ones; `inside`: what is put before a service's command line.
    """
    provider, http_mail, smtp = ports.trial(3)
    environments: dict[str, dict[str, str]] = {
        "sagapost_sandbox.provider": {"SAGAPOST_PORT": str(provider), "SAGAPOST_PROVIDER_LEDGER": str(folder / "provider.jsonl")},
        "sagapost_sandbox.mailbox": {
            "SAGAPOST_PORT": str(http_mail),
            "SAGAPOST_SMTP_PORT": str(smtp),
            "SAGAPOST_MAILBOX_LEDGER": str(folder / "mailbox.jsonl"),
        },
        "order": {"SAGAPOST_DATABASE_URL": urls["order"], "SAGAPOST_AMQP_URL": amqp_url},
        "payment": {
            "SAGAPOST_DATABASE_URL": urls["payment"],
            "SAGAPOST_AMQP_URL": amqp_url,
            "SAGAPOST_PROVIDER_URL": f"http://127.0.0.1:{provider}",
            "SAGAPOST_PROVIDER_TIMEOUT_S": "2",
            "SAGAPOST_PROVIDER_ATTEMPTS": "2",
        },
        "email": {"SAGAPOST_AMQP_URL": amqp_url, "SAGAPOST_SMTP_HOST": "127.0.0.1", "SAGAPOST_SMTP_PORT": str(smtp)},
        "relay-order": {"SAGAPOST_DATABASE_URL": urls["order"], "SAGAPOST_AMQP_URL": amqp_url, "SAGAPOST_LEASE_S": "2"},
        "relay-payment": {"SAGAPOST_DATABASE_URL": urls["payment"], "SAGAPOST_AMQP_URL": amqp_url, "SAGAPOST_LEASE_S": "2"},
        "gateway": {"SAGAPOST_PAGE_PORT": "0"},
    }
    known = targets.Targets(
        order_database_url=urls["order"],
        payment_database_url=urls["payment"],
        amqp_url=amqp_url,
        management_url=f"http://{broker.management.user}:{broker.management.password}@{broker.management.host}:{broker.management.port}",
        provider_url=f"http://127.0.0.1:{provider}",
        mailbox_url=f"http://127.0.0.1:{http_mail}",
    )
    for name, variables in (changes or {}).items():
        environments[name].update(variables)
    return Stack(folder, environments, known, inside)
