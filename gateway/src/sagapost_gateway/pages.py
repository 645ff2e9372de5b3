"""The pages for people, shop, documentation and problem types, each one self-contained document; it fetches and decides nothing."""

import base64
import hashlib
import html
from importlib import resources
from typing import Final

import litestar
import msgspec
from litestar import handlers

from sagapost_chassis import problems, web
from sagapost_gateway import edge, errors, problem_types

SHOP_PATH: Final = "/shop"
_PACKAGE: Final = "sagapost_gateway"
_KEPT: Final = {"Cache-Control": "no-cache", "Vary": "Accept"}


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A document and the one policy under which it works."""

    body: bytes
    policy: str


def assemble(name: str, facts: dict[str, str]) -> Page:
    """Put `<name>.html`, its styles and its script into one document; `{{fact}}` in the HTML becomes its escaped value."""
    folder = resources.files(_PACKAGE) / "static"
    style = (folder / "base.css").read_text("utf-8") + (folder / f"{name}.css").read_text("utf-8")
    script = (folder / "base.js").read_text("utf-8") + (folder / f"{name}.js").read_text("utf-8")
    text = (folder / f"{name}.html").read_text("utf-8")
    for fact, value in facts.items():
        text = text.replace("{{" + fact + "}}", html.escape(value))
    text = text.replace("{{style}}", style).replace("{{script}}", script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return Page(body=text.encode(), policy=policy)


def explain(slug: str) -> Page:
    """Put the page of one problem type together."""
    kind = problem_types.KINDS[slug]
    facts = {"slug": slug, "status": str(kind.status), "title": kind.title, "meaning": kind.meaning, "remedy": kind.remedy}
    return _plain("problem", {name: html.escape(value) for name, value in facts.items()})


def listed() -> Page:
    """Put the list of all problem types together."""
    lines = [f'    <li><a href="/problems/{slug}">{kind.status} {slug}</a></li>' for slug, kind in problem_types.KINDS.items()]
    return _plain("problems", {"list": "\n".join(lines)})


def _plain(name: str, facts: dict[str, str]) -> Page:
    folder = resources.files(_PACKAGE) / "static"
    style = (folder / "base.css").read_text("utf-8") + (folder / "problem.css").read_text("utf-8")
    text = (folder / f"{name}.html").read_text("utf-8")
    for fact, value in {**facts, "style": style}.items():
        text = text.replace("{{" + fact + "}}", value)
    policy = f"default-src 'none'; style-src '{_digest(style)}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return Page(body=text.encode(), policy=policy)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def routes(*, env: str, mailbox_url: str) -> list[handlers.HTTPRouteHandler]:
    """Give the handlers of /docs and, in development, of the shop; what it must know of its surroundings stands in its markup.

    In production a call needs an API key, and a browser is no place for one: a shop's own server has it.
    """
    shop = assemble("shop", {"env": env, "mailbox": mailbox_url})
    documentation = assemble("docs", {})

    @litestar.get(SHOP_PATH, sync_to_thread=False)
    def shop_page() -> litestar.Response[bytes]:
        return _answer(shop)

    @litestar.get("/docs", sync_to_thread=False)
    def docs_page() -> litestar.Response[bytes]:
        return _answer(documentation)

    return [*([shop_page] if env == "development" else []), docs_page, *_problems()]


def _problems() -> list[handlers.HTTPRouteHandler]:
    every = listed()
    one = {slug: explain(slug) for slug in problem_types.KINDS}

    @litestar.get("/problems", sync_to_thread=False)
    def all_problems(request: problems.Request) -> litestar.Response[bytes]:
        return web.json(problem_types.KINDS, headers=_KEPT) if _wants_json(request) else _answer(every, _KEPT)

    @litestar.get("/problems/{slug:str}", sync_to_thread=False)
    def one_problem(request: problems.Request, slug: str) -> litestar.Response[bytes]:
        if slug not in one:
            raise errors.NothingHereError("There is no problem type of this name.")
        return web.json(problem_types.KINDS[slug], headers=_KEPT) if _wants_json(request) else _answer(one[slug], _KEPT)

    return [all_problems, one_problem]


def _wants_json(request: problems.Request) -> bool:
    return edge.preferred(request.scope["headers"], ("text/html", "application/json")) == "application/json"


def _answer(page: Page, kept: dict[str, str] | None = None) -> litestar.Response[bytes]:
    headers = {"Content-Security-Policy": page.policy, "Cache-Control": "no-cache", **(kept or {})}
    return litestar.Response(page.body, media_type="text/html", headers=headers)
