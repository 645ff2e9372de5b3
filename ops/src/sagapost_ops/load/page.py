"""A load's report as one HTML file that needs nothing else; it must not compute anything."""

import html
from collections.abc import Mapping, Sequence
from string import Template
from typing import Final

import msgspec

from sagapost_ops import plot
from sagapost_ops.load import figures

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
h1 { font-size: 1.4rem; margin: 0 }
.how { color: #6e7781; margin: 0 0 1.5rem }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: 1.5rem }
.card { border: 1px solid #8a94a366; border-radius: 8px; padding: .6rem 1rem; min-width: 8rem }
.card b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums }
.card span { color: #6e7781 }
table { border-collapse: collapse; margin: 0 3rem 1.5rem 0; display: inline-table; vertical-align: top }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 1px solid #8a94a3; font-weight: 600 }
svg { max-width: 100%; height: auto }
</style>
</head>
<body>
<h1>$title</h1>
<p class="how">$how</p>
<div class="cards">$cards</div>
$tables
$charts
</body>
</html>
""")


def page(title: str, how: str, found: figures.Figures, charts: Sequence[plot.Chart]) -> str:
    """Write the page: the rates, the times, the outcomes, and the charts."""
    cards = (
        ("offered", f"{found.offered_per_s:g}/s"),
        ("accepted", f"{found.accepted_per_s:g}/s"),
        ("completed", f"{found.completed_per_s:g}/s"),
        ("answer, p99", f"{found.accept_ms.p99:g} ms"),
        ("to the mail, p99", f"{found.end_to_end_ms.p99:g} ms"),
        ("sagas that showed an older version than before", str(found.went_back)),
    )
    tables = _times(found) + _counts("outcome", found.outcomes) + (_counts("failed calls", found.errors) if found.errors else "")
    return _PAGE.substitute(
        title=html.escape(title),
        how=html.escape(how),
        cards="".join(f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>' for name, value in cards),
        tables=tables,
        charts=plot.svg(charts),
    )


def _times(found: figures.Figures) -> str:
    rows = "".join(
        f"<tr><td>{name}</td>" + "".join(f"<td>{value:,.1f}</td>" for value in msgspec.structs.astuple(times)) + "</tr>"
        for name, times in (("until the 202", found.accept_ms), ("until the end", found.end_to_end_ms))
    )
    return f"<table><tr><th>milliseconds</th><th>p50</th><th>p95</th><th>p99</th><th>max</th></tr>{rows}</table>\n"


def _counts(name: str, counted: Mapping[str, int]) -> str:
    rows = "".join(f"<tr><td>{html.escape(what)}</td><td>{number:,}</td></tr>" for what, number in counted.items())
    return f"<table><tr><th>{name}</th><th></th></tr>{rows}</table>\n"
