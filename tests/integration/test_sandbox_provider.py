import concurrent.futures
import pathlib
import signal
import socket
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any

import httpx
import pytest

from sagapost_sandbox.testing import services

Json = dict[str, Any]


@pytest.fixture
def client(provider: services.Service) -> Generator[httpx.Client]:
    """Talk to the shared provider, and leave it well-behaved."""
    with httpx.Client(base_url=provider.url, timeout=30) as opened:
        yield opened
        opened.put("/v1/behaviour", json={})


def charge(
    client: httpx.Client, method: str = "pm_card_ok", *, reference: str = "", key: str = "", amount: str = "12.50"
) -> httpx.Response:
    """Ask for one charge."""
    body = {"amount": amount, "currency": "USD", "reference": reference or _new(), "payment_method": method}
    return client.post("/v1/charges", json=body, headers={"Idempotency-Key": key or _new()})


def refund(client: httpx.Client, charged: Json, amount: str, key: str = "") -> httpx.Response:
    """Ask for one refund."""
    body = {"amount": amount, "currency": "USD", "reference": charged["reference"], "charge": charged["charge_id"]}
    return client.post("/v1/refunds", json=body, headers={"Idempotency-Key": key or _new()})


def moved(client: httpx.Client, reference: str) -> list[tuple[str, str]]:
    """List the movements of a reference as (kind, amount)."""
    return [(line["kind"], line["amount"]) for line in client.get("/v1/ledger", params={"reference": reference}).json()]


def _new() -> str:
    return str(uuid.uuid4())


def test_a_charge_moves_money_once_however_often_it_is_repeated(client: httpx.Client) -> None:
    """The same key with the same body gets the first answer, also when the amount is written otherwise."""
    reference, key = _new(), _new()

    first, second = (charge(client, reference=reference, key=key, amount=amount) for amount in ("12.50", "12.5"))

    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.json() | {"charge_id": "", "at": ""} == {
        "charge_id": "",
        "reference": reference,
        "amount": "12.50",
        "currency": "USD",
        "at": "",
        "status": "succeeded",
    }
    assert moved(client, reference) == [("charge", "12.50")]


def test_a_key_with_another_body_is_refused(client: httpx.Client) -> None:
    """A reused key is a bug of the caller: an error, and no money."""
    reference, key = _new(), _new()
    charge(client, reference=reference, key=key)

    answer = charge(client, reference=reference, key=key, amount="13.00")

    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert moved(client, reference) == [("charge", "12.50")]


def test_concurrent_requests_with_one_key_are_one_charge(client: httpx.Client) -> None:
    """The second request waits for the first one and gets its answer."""
    reference, key = _new(), _new()
    client.put("/v1/behaviour", json={"delay_s": 0.3})

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: charge(client, reference=reference, key=key), range(8)))

    assert {answer.content for answer in answers} == {answers[0].content}
    assert moved(client, reference) == [("charge", "12.50")]


@pytest.mark.parametrize(
    ("method", "status", "code"),
    [
        ("pm_card_declined", 402, "card_declined"),
        ("pm_card_insufficient_funds", 402, "insufficient_funds"),
        ("pm_nonsense", 400, "unknown_payment_method"),
    ],
)
def test_a_refusal_moves_nothing_and_is_repeated(client: httpx.Client, method: str, status: int, code: str) -> None:
    """A decline is final: the same key gets the same no."""
    reference, key = _new(), _new()

    answers = [charge(client, method, reference=reference, key=key) for _ in range(2)]

    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(status, code)] * 2
    assert moved(client, reference) == []


def test_flaky_fails_twice_per_key_and_then_succeeds(client: httpx.Client) -> None:
    """A transient fault moves nothing until the third try."""
    reference, key = _new(), _new()

    statuses = [charge(client, "pm_flaky", reference=reference, key=key).status_code for _ in range(4)]

    assert statuses == [503, 503, 200, 200]
    assert moved(client, reference) == [("charge", "12.50")]


def test_error_after_charge_is_truthful_to_the_key(client: httpx.Client) -> None:
    """The money moved although the answer was 500; the look-up and a repetition with the key say so."""
    reference, key = _new(), _new()

    first = charge(client, "pm_error_after_charge", reference=reference, key=key)
    found = client.get("/v1/charges", params={"reference": reference}).json()["charges"]
    second = charge(client, "pm_error_after_charge", reference=reference, key=key)

    assert (first.status_code, second.status_code) == (500, 200)
    assert [line["charge_id"] for line in found] == [second.json()["charge_id"]]
    assert moved(client, reference) == [("charge", "12.50")]


def test_hang_never_answers_and_never_charges(client: httpx.Client) -> None:
    """A client that gives up finds nothing charged."""
    reference = _new()

    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=client.base_url, timeout=0.5) as impatient:
        charge(impatient, "pm_hang", reference=reference)

    assert client.get("/v1/charges", params={"reference": reference}).json() == {"charges": []}
    assert moved(client, reference) == []


def test_late_charges_although_nobody_waits_any_more(client: httpx.Client, eventually: Callable[..., Any]) -> None:
    """The look-up finds the charge that the impatient client never heard of, and a repetition answers at once."""
    reference, key = _new(), _new()

    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=client.base_url, timeout=0.5) as impatient:
        charge(impatient, "pm_late", reference=reference, key=key)

    eventually(lambda: moved(client, reference) == [("charge", "12.50")])
    assert charge(client, "pm_late", reference=reference, key=key).status_code == 200
    assert moved(client, reference) == [("charge", "12.50")]


def test_slow_takes_six_seconds(client: httpx.Client) -> None:
    """It is slow, and it charges."""
    reference, started = _new(), time.monotonic()

    answer = charge(client, "pm_slow", reference=reference)

    assert answer.status_code == 200
    assert 6 <= time.monotonic() - started < 25
    assert moved(client, reference) == [("charge", "12.50")]


def test_poison_cannot_be_decoded_and_moves_nothing(client: httpx.Client) -> None:
    """A success by its status with a body that is no JSON at all."""
    reference = _new()

    answer = charge(client, "pm_poison", reference=reference)

    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"utf-8|JSON|delimiter"):
        answer.json()
    assert moved(client, reference) == []


def test_a_refund_gives_back_at_most_what_was_charged(client: httpx.Client) -> None:
    """Parts may be refunded until nothing is left; repetitions and too much move nothing."""
    charged = charge(client).json()
    key = _new()

    first, again = (refund(client, charged, "10.00", key) for _ in range(2))
    too_much = refund(client, charged, "2.51")
    rest = refund(client, charged, "2.50")

    assert first.content == again.content
    assert (too_much.status_code, too_much.json()["error"]["code"]) == (422, "amount_exceeds_charge")
    assert rest.status_code == 200
    assert moved(client, charged["reference"]) == [("charge", "12.50"), ("refund", "10.00"), ("refund", "2.50")]
    (found,) = client.get("/v1/charges", params={"reference": charged["reference"]}).json()["charges"]
    assert found["refunded"] == "12.50"
    assert [line["amount"] for line in found["refunds"]] == ["10.00", "2.50"]


def test_concurrent_refunds_do_not_give_back_too_much(client: httpx.Client) -> None:
    """Of ten refunds of the whole amount under ten keys exactly one goes through."""
    charged = charge(client).json()

    with concurrent.futures.ThreadPoolExecutor(10) as threads:
        statuses = list(threads.map(lambda _: refund(client, charged, "12.50").status_code, range(10)))

    assert sorted(statuses) == [200] + [422] * 9
    assert moved(client, charged["reference"]) == [("charge", "12.50"), ("refund", "12.50")]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_request"),
        (b"\xff", "invalid_request"),
        (b'{"amount": "1.00"}', "invalid_request"),
        (b'{"amount": "-1.00", "currency": "USD", "reference": "r", "payment_method": "pm_card_ok"}', "invalid_amount"),
        (b'{"amount": "0.00", "currency": "USD", "reference": "r", "payment_method": "pm_card_ok"}', "invalid_amount"),
        (b'{"amount": "NaN", "currency": "USD", "reference": "r", "payment_method": "pm_card_ok"}', "invalid_amount"),
    ],
)
def test_a_bad_request_is_refused_with_a_code(client: httpx.Client, body: bytes, code: str) -> None:
    """What cannot be read is the caller's fault, never a 5xx."""
    answer = client.post("/v1/charges", content=body, headers={"Idempotency-Key": _new()})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_a_request_without_a_key_is_refused(client: httpx.Client) -> None:
    """Nobody charges by accident."""
    body = {"amount": "1.00", "currency": "USD", "reference": _new(), "payment_method": "pm_card_ok"}

    answer = client.post("/v1/charges", json=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_missing")


@pytest.mark.parametrize(
    ("behaviour", "statuses", "charges"),
    [({"down": True}, [503, 503], 0), ({"failure_rate": 1.0}, [503, 503], 0), ({"ignore_idempotency_keys": True}, [200, 200], 2)],
)
def test_behaviour_is_as_asked(client: httpx.Client, behaviour: Mapping[str, object], statuses: list[int], charges: int) -> None:
    """Down and failing move nothing; without keys a repetition charges twice."""
    reference, key = _new(), _new()
    client.put("/v1/behaviour", json=behaviour)

    answered = [charge(client, reference=reference, key=key).status_code for _ in range(2)]

    assert answered == statuses
    assert len(moved(client, reference)) == charges


def test_a_refund_fails_as_often_as_asked_under_one_key(client: httpx.Client) -> None:
    """Passing faults of a refund move nothing until the key has had its share of them; then it goes through, once."""
    charged, key = charge(client).json(), _new()
    client.put("/v1/behaviour", json={"refund_failures": 2})

    statuses = [refund(client, charged, "12.50", key).status_code for _ in range(4)]

    assert statuses == [503, 503, 200, 200]
    assert moved(client, charged["reference"]) == [("charge", "12.50"), ("refund", "12.50")]


def test_a_refund_is_declined_until_told_otherwise(client: httpx.Client) -> None:
    """A declined refund moves nothing and is not remembered: the same key goes through when the provider behaves again."""
    charged, key = charge(client).json(), _new()
    client.put("/v1/behaviour", json={"refund_declined": "refunds_suspended"})

    declined = [refund(client, charged, "12.50", key) for _ in range(2)]
    client.put("/v1/behaviour", json={})
    done = refund(client, charged, "12.50", key)

    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in declined] == [(422, "refunds_suspended")] * 2
    assert done.status_code == 200
    assert moved(client, charged["reference"]) == [("charge", "12.50"), ("refund", "12.50")]


def test_errors_are_kept_under_their_key_when_asked_for(client: httpx.Client) -> None:
    """Faults and refusals are repeated under their key, marked, also when the provider behaves again; another key is tried anew."""
    reference, key, other = _new(), _new(), _new()
    client.put("/v1/behaviour", json={"keep_errors": True, "failure_rate": 1})
    first = charge(client, reference=reference, key=key)
    client.put("/v1/behaviour", json={"keep_errors": True, "refund_declined": "refunds_suspended"})
    kept = charge(client, reference=reference, key=key)
    charged = charge(client, reference=reference, key=other).json()
    refused = refund(client, charged, "12.50", "ref")
    client.put("/v1/behaviour", json={})

    answers = [refund(client, charged, "12.50", name) for name in ("ref", "ref:2")]

    assert [(answer.status_code, answer.headers.get("Idempotent-Replayed")) for answer in (first, kept)] == [(503, None), (503, "true")]
    assert [answer.status_code for answer in (refused, *answers)] == [422, 422, 200]
    assert moved(client, reference) == [("charge", "12.50"), ("refund", "12.50")]


def test_unchecked_refunds_give_back_more_than_was_taken(client: httpx.Client) -> None:
    """Only the idempotency key keeps such a provider from refunding twice."""
    charged, key = charge(client).json(), _new()
    client.put("/v1/behaviour", json={"refunds_unchecked": True})

    statuses = [refund(client, charged, "12.50", own).status_code for own in (key, key, _new())]

    assert statuses == [200] * 3
    assert moved(client, charged["reference"]) == [("charge", "12.50"), ("refund", "12.50"), ("refund", "12.50")]


@pytest.mark.parametrize(("behaviour", "taken"), [({"charged_amount": "1.00"}, "1.00"), ({"answered_amount": "1.00"}, "12.50")])
def test_an_amount_can_be_wrong_in_the_answer_alone_or_for_real(client: httpx.Client, behaviour: Mapping[str, str], taken: str) -> None:
    """The answer says another amount than was asked for; what the look-up and the ledger say is what moved, and the key still fits."""
    reference, key = _new(), _new()
    client.put("/v1/behaviour", json=behaviour)

    first, second = (charge(client, reference=reference, key=key) for _ in range(2))

    assert (first.json()["amount"], second.content) == ("1.00", first.content)
    assert [line["amount"] for line in client.get("/v1/charges", params={"reference": reference}).json()["charges"]] == [taken]
    assert moved(client, reference) == [("charge", taken)]


def test_the_behaviour_is_shown_and_left_out_fields_go_back(client: httpx.Client) -> None:
    """What is put is what is read, and a new behaviour forgets the old one."""
    client.put("/v1/behaviour", json={"refund_failures": 3, "charged_amount": "1.00"})
    changed = client.get("/v1/behaviour").json()
    client.put("/v1/behaviour", json={})

    assert (changed["refund_failures"], changed["charged_amount"]) == (3, "1.00")
    assert client.get("/v1/behaviour").json() == {
        "delay_s": None,
        "failure_rate": 0.0,
        "ignore_idempotency_keys": False,
        "down": False,
        "refund_failures": 0,
        "refund_declined": None,
        "refunds_unchecked": False,
        "charged_amount": None,
        "answered_amount": None,
    }


def test_the_books_survive_kill_9(start_service: Callable[..., services.Service], tmp_path: pathlib.Path) -> None:
    """What was answered is on disk; after a restart a key still gets its first answer, a decline included, and a torn line is cut off."""
    ledger = tmp_path / "books" / "ledger.jsonl"
    env = {"SAGAPOST_PROVIDER_LEDGER": str(ledger)}
    keys = [_new() for _ in range(3)]
    first = start_service("sagapost_sandbox.provider", env).wait_ready()
    with httpx.Client(base_url=first.url) as client:
        charged = charge(client, key=keys[0], reference="r")
        declined = charge(client, "pm_card_declined", key=keys[1], reference="r")
        refunded = refund(client, charged.json(), "1.00", keys[2])
    first.kill()
    with ledger.open("ab") as file:
        file.write(b'{"kind": "charge", "refer')

    second = start_service("sagapost_sandbox.provider", env).wait_ready()

    with httpx.Client(base_url=second.url) as client:
        assert charge(client, key=keys[0], reference="r").content == charged.content
        assert charge(client, "pm_card_declined", key=keys[1], reference="r").content == declined.content
        assert refund(client, charged.json(), "1.00", keys[2]).content == refunded.content
        assert charge(client, reference="r").status_code == 200
        assert moved(client, "r") == [("charge", "12.50"), ("refund", "1.00"), ("charge", "12.50")]
    assert all(line.startswith("{") and line.endswith("}") for line in ledger.read_text().splitlines())


def test_a_hanging_call_does_not_hold_up_the_end(start_service: Callable[..., services.Service], tmp_path: pathlib.Path) -> None:
    """SIGTERM ends the provider at once with exit code 0 although a client waits for ever."""
    service = start_service("sagapost_sandbox.provider", {"SAGAPOST_PROVIDER_LEDGER": str(tmp_path / "ledger.jsonl")}).wait_ready()
    body = b'{"amount": "12.50", "currency": "USD", "reference": "r", "payment_method": "pm_hang"}'
    head = b"POST /v1/charges HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k\r\nExpect: 100-continue\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as waiting:
        waiting.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        assert waiting.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # the provider reads the body
        waiting.sendall(body)
        with httpx.Client(base_url=service.url, timeout=20) as other:
            assert charge(other).status_code == 200
        started = time.monotonic()

        service.send(signal.SIGTERM)

        assert service.wait(8) == 0
        assert time.monotonic() - started < 5
        assert waiting.recv(100).startswith(b"HTTP/1.1 503 ")


def test_log_lines_are_json_without_secrets(provider: services.Service, client: httpx.Client, eventually: Callable[..., Any]) -> None:
    """One line per request, with reference and outcome."""
    reference = _new()

    charge(client, "pm_card_declined", reference=reference)

    (line,) = eventually(lambda: [line for line in provider.lines() if line.get("reference") == reference])
    assert (line["name"], line["outcome"]) == ("charge", "card_declined")
