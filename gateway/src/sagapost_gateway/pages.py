"""The two pages for people, shop and documentation, each one self-contained document; it fetches and decides nothing."""

import base64
import hashlib
import html
from importlib import resources
from typing import Final

import litestar
import msgspec
from litestar import handlers

SHOP_PATH: Final = "/shop"
_PACKAGE: Final = "sagapost_gateway"


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


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def routes(*, env: str, mailbox_url: str) -> list[handlers.HTTPRouteHandler]:
    """Give the handlers of the shop and of /docs; what the shop must know of its surroundings stands in its markup."""
    shop = assemble("shop", {"env": env, "mailbox": mailbox_url})
    documentation = assemble("docs", {})

    @litestar.get(SHOP_PATH, sync_to_thread=False)
    def shop_page() -> litestar.Response[bytes]:
        return _answer(shop)

    @litestar.get("/docs", sync_to_thread=False)
    def docs_page() -> litestar.Response[bytes]:
        return _answer(documentation)

    return [shop_page, docs_page]


def _answer(page: Page) -> litestar.Response[bytes]:
    headers = {"Content-Security-Policy": page.policy, "Cache-Control": "no-cache"}
    return litestar.Response(page.body, media_type="text/html", headers=headers)
