import asyncio
import pathlib
import re
from typing import Any

import msgspec
import pytest
from litestar import types

from sagapost_chassis import errors, problems, settings
from sagapost_gateway import cors, openapi, pages, problem_types
from sagapost_gateway.settings import Settings

SOURCES = sorted(
    path
    for member in ("chassis", "contracts", "gateway", "order")
    for path in (pathlib.Path(__file__).parents[2] / member / "src").rglob("*.py")
)
# a slug that is set, named as a type, or passed with its status
SLUG = re.compile(
    r'slug(?:: ClassVar\[str\])? = "([a-z-]+)"|/problems/([a-z][a-z-]+)'
    r'|\((?:request|scope, send|"[a-z]+"), [0-9]{3}, "([a-z-]+)"|[0-9]{3}: \(?"([a-z-]+)"'
)
SITE = "https://shop.example"


def used() -> set[str]:
    """Find every slug that the code can answer with."""
    return {slug for path in SOURCES for found in SLUG.findall(path.read_text(encoding="utf-8")) for slug in found if slug}


def test_every_problem_that_can_be_answered_has_a_page() -> None:
    """The `type` of an error answer never leads nowhere, and no page is of a type that is never answered."""
    documented = {
        str(example["value"]["type"]).removeprefix("/problems/")
        for methods in msgspec.json.decode(openapi.encoded())["paths"].values()
        for operation in methods.values()
        for answer in operation["responses"].values()
        for example in answer.get("content", {}).get("application/problem+json", {}).get("examples", {}).values()
    }

    assert {"malformed-request", "circuit-open", "price-changed", "internal-error", "rate-limited"} <= used()
    assert documented | used() == set(problem_types.KINDS)


def test_each_type_has_one_title() -> None:
    """RFC 9457, 3.1.3: the title is the type's. The table, the pages and the examples have the same one, and no other place has any."""
    assert set(problem_types.KINDS) == set(problems.TITLES)
    assert len(set(problems.TITLES.values())) == len(problems.TITLES)
    for slug, kind in problem_types.KINDS.items():
        assert (slug, kind.title) == (slug, problems.TITLES[slug])
    written = re.compile(r"title=(?!problems\.TITLES|TITLES|kind)[^,\n]+")
    made = [found for path in SOURCES for found in written.findall(path.read_text(encoding="utf-8"))]
    assert made == []
    shown = [
        example["value"]
        for methods in msgspec.json.decode(openapi.encoded())["paths"].values()
        for operation in methods.values()
        for answer in operation["responses"].values()
        for example in answer.get("content", {}).get("application/problem+json", {}).get("examples", {}).values()
    ]
    assert {one["title"] for one in shown} <= set(problems.TITLES.values())


def test_a_page_says_what_the_answer_says() -> None:
    """Status and title of the documented examples are those of the table."""
    for methods in msgspec.json.decode(openapi.encoded())["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                for slug in answer.get("content", {}).get("application/problem+json", {}).get("examples", {}):
                    assert problem_types.KINDS[slug].status == int(status)


def test_the_default_problem_is_the_unreadable_request() -> None:
    """A refusal that names no type has one with a page."""
    assert errors.DomainError.slug in problem_types.KINDS


@pytest.mark.parametrize("slug", problem_types.KINDS)
def test_a_problem_page_works_without_any_network(slug: str) -> None:
    """It loads nothing, runs nothing, and has every fact of its type."""
    page = pages.explain(slug)
    text = page.body.decode()

    assert slug in text
    assert "{{" not in text
    assert not re.search(r"//[a-zA-Z0-9][\w-]*\.\w+|<script|@import|\ssrc=|\sstyle=", text)
    assert page.policy.startswith("default-src 'none'; style-src 'sha256-")
    assert f'href="/problems/{slug}"' in pages.listed().body.decode()


async def answered(origins: tuple[str, ...], method: str, path: str, *headers: tuple[bytes, bytes]) -> tuple[int, dict[bytes, bytes]]:
    """Make one request of an application that says 200 to everything, behind the rule for other sites."""
    messages: list[types.Message] = []

    async def inner(_: types.Scope, __: types.Receive, send: types.Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(message: types.Message) -> None:
        messages.append(message)

    async def receive() -> types.HTTPReceiveMessage:
        raise AssertionError

    scope: Any = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await cors.allowing(inner, origins)(scope, receive, send)
    first: Any = messages[0]
    return first["status"], dict(first["headers"])


PREFLIGHT = ((b"access-control-request-method", b"POST"),)


@pytest.mark.parametrize(
    ("origins", "origin", "status", "allowed"),
    [
        ((SITE,), SITE, 204, True),
        ((SITE,), "https://evil.example", 200, False),
        ((SITE,), SITE + ".evil.example", 200, False),
        ((SITE,), "http://shop.example", 200, False),
        ((SITE,), "null", 200, False),
        ((), SITE, 200, False),
    ],
)
def test_only_named_sites_may_use_the_api(origins: tuple[str, ...], origin: str, status: int, *, allowed: bool) -> None:
    """Preflight and answer name the site that asked when it is on the list, and allow nothing otherwise."""
    given = (b"origin", origin.encode())

    preflight = asyncio.run(answered(origins, "OPTIONS", "/api/checkout", given, *PREFLIGHT))
    answer = asyncio.run(answered(origins, "POST", "/api/checkout", given))
    outside = asyncio.run(answered(origins, "GET", "/docs", given))

    assert preflight[0] == status
    for headers in (preflight[1], answer[1]):
        assert headers.get(b"access-control-allow-origin") == (origin.encode() if allowed else None)
        assert b"access-control-allow-credentials" not in headers
        assert headers.get(b"vary") == (b"Origin" if origins else None)
    assert (b"access-control-allow-methods" in preflight[1]) is allowed
    assert outside == (200, {})


@pytest.mark.parametrize("value", ["*", "null", "shop.example", "https://shop.example/", "https://*.example", "https://a.example,*"])
def test_other_sites_are_named_one_by_one(value: str) -> None:
    """A star, or an address that no browser sends as an origin, is refused at the start."""
    with pytest.raises(settings.SettingsError, match="SAGAPOST_CORS_ORIGINS"):
        settings.load(Settings, {"SAGAPOST_CORS_ORIGINS": value})


def test_sites_are_separated_by_spaces_or_commas() -> None:
    """Both ways to write a list in a variable work."""
    config = settings.load(Settings, {"SAGAPOST_CORS_ORIGINS": "https://a.example, http://localhost:5173 https://b.example:8443"})

    assert config.origins() == ("https://a.example", "http://localhost:5173", "https://b.example:8443")
