"""Two pages for people: the list, and one mail; plain HTML that needs neither script nor network."""

import html
from typing import Final

from sagapost_sandbox.mailbox import mime, wire

SHOWN: Final = 200
REFRESH_S: Final = 5
PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'"
# A mail is somebody else's HTML: no script, no form, nothing from the network, no origin.
MAIL_POLICY: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE: Final = """
:root { color-scheme: light dark;
  --line: color-mix(in srgb, currentColor 15%, transparent);
  --dim: color-mix(in srgb, currentColor 60%, transparent) }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
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


def index(entries: list[wire.Entry]) -> str:
    """Show the newest mails as a list that renews itself."""
    lines = "".join(_line(entry) for entry in entries[:SHOWN])
    shown = f"<ul>{lines}</ul>" if lines else "<p>No mail yet. Check something out, and its receipt arrives here.</p>"
    head = f'<meta http-equiv="refresh" content="{REFRESH_S}">'
    return _page(f"Mailbox ({len(entries)})", f"<h1>Mailbox <small>{len(entries)} mails</small></h1>{shown}", head)


def mail(entry: wire.Entry) -> str:
    """Show one mail: who, when, and its body in a frame that may do nothing."""
    text, markup = mime.bodies(entry.raw)
    rows = {"From": entry.sender, "To": ", ".join(entry.to), "Time": entry.at, "Message-ID": entry.message_id}
    facts = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in rows.items())
    frame = f'<iframe sandbox src="/view/{entry.id}.html" title="The mail"></iframe>' if markup else ""
    plain = f"<details{'' if markup else ' open'}><summary>Plain text</summary><pre>{html.escape(text)}</pre></details>"
    headers = f'<p><a href="/api/v1/message/{entry.id}/headers">Headers</a> · <a href="/api/v1/message/{entry.id}/raw">Source</a></p>'
    title = html.escape(entry.subject or "(no subject)")
    return _page(title, f'<p><a href="/">← Mailbox</a></p><h1>{title}</h1><dl>{facts}</dl>{frame}{plain}{headers}', "")


def body(entry: wire.Entry) -> str:
    """Return the mail's own HTML, or its text as HTML."""
    text, markup = mime.bodies(entry.raw)
    return markup or f"<pre>{html.escape(text)}</pre>"


def _line(entry: wire.Entry) -> str:
    subject, to = html.escape(entry.subject or "(no subject)"), html.escape(", ".join(entry.to))
    moment = entry.at[:19].replace("T", " ")
    return f'<li><a href="/mail/{entry.id}"><b>{subject}</b><time datetime="{entry.at}">{moment} UTC</time><small>to {to}</small></a></li>'


def _page(title: str, content: str, head: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{head}<title>{title}</title><style>{_STYLE}</style></head><body>{content}</body></html>"
    )
