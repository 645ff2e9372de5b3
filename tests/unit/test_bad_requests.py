"""The list of requests that must be refused: what .ci/bad-inputs sends, for everybody who runs .ci/run."""

import base64
import collections
import http
import json

import bad_requests


def test_every_case_has_a_name_of_its_own_and_expects_a_refusal() -> None:
    """A case that expects a success, or a fault of ours, would prove nothing."""
    cases = bad_requests.cases()

    assert [name for name, times in collections.Counter(case["name"] for case in cases).items() if times > 1] == []
    assert all(400 <= status < 500 for case in cases for status in case["expect"])
    assert all(http.HTTPStatus(status) for case in cases for status in case["expect"])


def test_the_list_is_long_and_covers_every_status_of_the_contract() -> None:
    """Malformed, missing, wrong method, too large, wrong type, unfit: each has cases, and the list does not shrink unnoticed."""
    by_status = collections.Counter(case["expect"][0] for case in bad_requests.cases())

    assert {400, 404, 405, 413, 415, 422} <= by_status.keys()
    assert by_status.total() >= 150


def test_what_is_not_wrong_about_a_case_is_right() -> None:
    """Cases start from a cart that is accepted: otherwise they would all be refused for the same reason."""
    assert bad_requests.cart() == {"user_id": 1, "user_email": "test@example.com", "items": [bad_requests.item()]}
    raw = next(case for case in bad_requests.cases() if case["name"] == "quantity is text")
    assert json.loads(base64.b64decode(raw["body_b64"])) == bad_requests.cart(items=[bad_requests.item(quantity="1")])
