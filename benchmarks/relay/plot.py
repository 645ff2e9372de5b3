"""A bar chart as SVG, readable on white and on dark; it must not know what the bars stand for."""

import html
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

WIDTH: Final = 760
_BAR: Final = 18
_GAP: Final = 8
_LABEL: Final = 210
_VALUE: Final = 110
_TITLE: Final = 34
_CUT: Final = 5
_OURS: Final = "#2f9e6e"
_OTHERS: Final = "#8a94a3"
_BOUND: Final = "#c98a1b"
# A grey that stands out from white (4.5:1) and from a dark page (4.2:1) alike. No media query: the viewer's scheme is not the page's.
_STYLE: Final = """
<style>
text { font: 13px system-ui, sans-serif; fill: #6e7781 }
.title { font-weight: 600; font-size: 14px }
</style>
"""


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar; `kind` is ours, other or bound."""

    label: str
    value: float
    kind: str = "other"


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """Bars on one scale; `shape` writes their values. A bar beyond five times the median is cut, and its value says so."""

    title: str
    bars: tuple[Bar, ...]
    shape: str = "{:,.0f}"


def svg(panels: Sequence[Panel]) -> str:
    """Draw the panels, one below the other."""
    parts: list[str] = []
    top = 0
    for panel in panels:
        parts += _panel(panel, top)
        top += _TITLE + len(panel.bars) * (_BAR + _GAP) + _GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" role="img">'
    return "\n".join((head, _STYLE.strip(), *parts, "</svg>", ""))


def _panel(panel: Panel, top: int) -> list[str]:
    parts = [f'<text class="title" x="0" y="{top + 20}">{html.escape(panel.title)}</text>']
    largest = _scale([bar.value for bar in panel.bars])
    room = WIDTH - _LABEL - _VALUE
    for number, bar in enumerate(panel.bars):
        y = top + _TITLE + number * (_BAR + _GAP)
        width = max(1.0, min(1.0, bar.value / largest) * room)
        value = panel.shape.format(bar.value) + (" (cut)" if bar.value > largest else "")
        colour = {"ours": _OURS, "bound": _BOUND}.get(bar.kind, _OTHERS)
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{html.escape(bar.label)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>',
            f'<text x="{_LABEL + width + 8:.1f}" y="{y + 14}">{html.escape(value)}</text>',
        ]
    return parts


def _scale(values: Sequence[float]) -> float:
    """Choose the value of a whole bar: one that is far out must not make the others too small to compare."""
    if not values:
        return 1.0
    return min(max(values), _CUT * statistics.median(values)) or 1.0
