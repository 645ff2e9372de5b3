"""A broker or a service that is gone for a while: checkouts go on, and everything ends once it is back."""

import functools

from faults.stack import Stack

from sagapost_sandbox.testing import polling, servers


def test_checkouts_go_on_without_a_broker(fragile_stack: Stack, private_broker: servers.Broker) -> None:
    """With the broker killed every checkout is still accepted; with it back all of them are paid and notified, once."""
    private_broker.kill()

    answers = [fragile_stack.checkout() for _ in range(10)]
    _, ready = fragile_stack.call("GET", "/health/ready")
    private_broker.start()

    assert [status for status, _ in answers] == [202] * 10
    assert ready["status"] == "ok"
    for _, answer in answers:
        assert fragile_stack.ended(answer["saga_id"])["state"] == "notified"
    fragile_stack.verified()


def test_a_deployment_of_everything_loses_and_repeats_nothing(stack: Stack) -> None:
    """SIGTERM to every service in turn, with checkouts under way: each exits 0, everything ends, nothing is dead-lettered."""
    answers = []
    for name in ("order", "payment", "email", "relay-order", "relay-payment"):
        answers += [stack.checkout() for _ in range(4)]
        old = stack.running[name]
        stack.replace(name).wait_ready()
        assert old.returncode == 0

    assert [status for status, _ in answers] == [202] * len(answers)
    for _, answer in answers:
        assert stack.ended(answer["saga_id"])["state"] == "notified"
    stack.verified()


def test_one_trace_runs_from_the_request_to_the_mail(stack: Stack) -> None:
    """The trace id that the caller sent is in the saga, in every service's log and in the mail's header."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    answer = stack.traced_checkout(f"00-{trace}-00f067aa0ba902b7-01")
    saga = stack.ended(answer["saga_id"])

    assert saga["trace_id"] == trace
    assert stack.mail_headers(answer["user_email"])["Traceparent"][0].split("-")[1] == trace
    for name in ("gateway", "order", "payment", "email"):
        polling.eventually(functools.partial(_traced, stack, name, trace))


def _traced(stack: Stack, name: str, trace: str) -> bool:
    return any(line.get("trace_id") == trace for line in stack.running[name].lines())
