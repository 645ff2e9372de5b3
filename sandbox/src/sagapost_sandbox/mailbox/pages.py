"""Two pages for people: the list, and one mail; plain HTML that needs neither script nor network."""

import html
from typing import Final

from sagapost_sandbox.mailbox import mime, wire

SHOWN: Final = 200
PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'self'"
# A mail is somebody else's HTML: no script, no form, nothing from the network, no origin.
MAIL_POLICY: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE: Final = """
:root { color-scheme: light dark;
  --line: color-mix(in srgb, currentColor 15%, transparent);
  --dim: color-mix(in srgb, currentColor 60%, transparent) }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
header { display: flex; gap: 1rem; align-items: baseline; justify-content: space-between }
form { display: flex; gap: .5rem; align-items: baseline } input, button { font: inherit }
h1 { font-size: 1.3rem } a { color: inherit } small, dt, time { color: var(--dim) }
ul { list-style: none; padding: 0; border-top: 1px solid var(--line) }
li a { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; padding: .6rem .4rem;
  border-bottom: 1px solid var(--line); text-decoration: none }
li a:hover, li a:focus-visible { background: var(--line) }
li b { overflow-wrap: anywhere } li small { grid-column: 1 / -1; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem } dd { margin: 0; overflow-wrap: anywhere }
iframe { width: 100%; height: 65vh; border: 1px solid var(--line); border-radius: .4rem; background: white }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""


def found(entries: list[wire.Entry], wanted: str) -> list[wire.Entry]:
    """Return the mails whose subject, recipient or Message-ID holds a text; an order's number is in the subject, its saga in the id."""
    text = wanted.strip().casefold()
    return [entry for entry in entries if text in f"{entry.subject} {' '.join(entry.to)} {entry.message_id}".casefold()]


def index(entries: list[wire.Entry], wanted: str, back: str) -> str:
    """Show the newest of these mails as a list; `wanted` is what was searched for, `back` the shop's address."""
    lines = "".join(_line(entry) for entry in entries[:SHOWN])
    nothing = "No mail matches." if wanted else "No mail yet. Check something out, and its receipt arrives here."
    shown = f"<ul>{lines}</ul>" if lines else f"<p>{nothing}</p>"
    search = (
        '<form role="search" method="get" action="/"><label for="q">Order, address or saga</label>'
        f'<input id="q" name="q" type="search" value="{html.escape(wanted)}"><button>Search</button> <a href="/">Show all, anew</a></form>'
    )
    return _page(f"Mailbox ({len(entries)})", f"<h1>Mailbox <small>{len(entries)} mails</small></h1>{search}{shown}", back)


def mail(entry: wire.Entry, back: str) -> str:
    """Show one mail: who, when, and its body in a frame that may do nothing."""
    text, markup = mime.bodies(entry.raw)
    rows = {"From": entry.sender, "To": ", ".join(entry.to), "Time": entry.at, "Message-ID": entry.message_id}
    facts = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in rows.items())
    frame = f'<iframe sandbox src="/view/{entry.id}.html" title="The mail"></iframe>' if markup else ""
    plain = f"<details{'' if markup else ' open'}><summary>Plain text</summary><pre>{html.escape(text)}</pre></details>"
    headers = f'<p><a href="/api/v1/message/{entry.id}/headers">Headers</a> · <a href="/api/v1/message/{entry.id}/raw">Source</a></p>'
    title = html.escape(entry.subject or "(no subject)")
    return _page(title, f'<p><a href="/">← Mailbox</a></p><h1>{title}</h1><dl>{facts}</dl>{frame}{plain}{headers}', back)


def body(entry: wire.Entry) -> str:
    """Return the mail's own HTML, or its text as HTML."""
    text, markup = mime.bodies(entry.raw)
    return markup or f"<pre>{html.escape(text)}</pre>"


def _line(entry: wire.Entry) -> str:
    subject, to = html.escape(entry.subject or "(no subject)"), html.escape(", ".join(entry.to))
    moment = entry.at[:19].replace("T", " ")
    return f'<li><a href="/mail/{entry.id}"><b>{subject}</b><time datetime="{entry.at}">{moment} UTC</time><small>to {to}</small></a></li>'


def _page(title: str, content: str, back: str) -> str:
    link = f'<a href="{html.escape(back)}">← Back to the shop</a>' if back else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title} · Sagapost</title><style>{_STYLE}</style></head>"
        f"<body><header><b>Sagapost mailbox</b>{link}</header><main>{content}</main></body></html>"
    )
