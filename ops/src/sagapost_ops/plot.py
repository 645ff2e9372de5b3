"""Lines over time as SVG, readable on white and on dark; it must not know what the lines stand for."""

import html
import math
from collections.abc import Sequence
from typing import Final

import msgspec

WIDTH: Final = 960
_LEFT: Final = 96
_RIGHT: Final = 20
_TITLE: Final = 34
_FOOT: Final = 44
_ROW: Final = 13
_POINTS: Final = 600
_TICKS: Final = 6
GREEN: Final = "#2f9e6e"
BLUE: Final = "#3d7bd9"
AMBER: Final = "#c98a1b"
RED: Final = "#d05252"
GREY: Final = "#8a94a3"
# a grey that stands out from white and from a dark page alike
_STYLE: Final = """
<style>
text { font: 13px system-ui, sans-serif; fill: #6e7781 }
.title { font-weight: 600; font-size: 15px }
.small { font-size: 11px }
</style>
"""

Point = tuple[float, float]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line; its points are in order of x."""

    label: str
    colour: str
    points: tuple[Point, ...]


class Shade(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of x that is coloured from top to bottom."""

    label: str
    colour: str
    stretches: tuple[Point, ...]


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """A row of short strokes below the lines, one for each thing that happened."""

    label: str
    colour: str
    at: tuple[float, ...]


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """Lines on one scale; `x_label` and `y_label` carry the units."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    shades: tuple[Shade, ...] = ()
    marks: tuple[Marks, ...] = ()
    height: int = 380


class _Scale(msgspec.Struct, frozen=True, kw_only=True):
    """Where a value of the data lies on the page."""

    x_max: float
    y_max: float
    bottom: float

    def x(self, value: float) -> float:
        return _LEFT + value / self.x_max * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.bottom - value / self.y_max * (self.bottom - _TITLE - 10)


def svg(charts: Sequence[Chart]) -> str:
    """Draw charts, one below the other, as one document."""
    parts: list[str] = []
    top = 0
    for chart in charts:
        height = chart.height + len(chart.marks) * _ROW
        parts += [f'<g transform="translate(0 {top})">', *_chart(chart), "</g>"]
        top += height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" role="img">'
    return "\n".join((head, _STYLE.strip(), *parts, "</svg>", ""))


def nice(largest: float) -> float:
    """Give the step of an axis of about six steps that reaches `largest`: 1, 2 or 5 times a power of ten."""
    rough = max(largest, 1e-9) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)


def thinned(points: Sequence[Point], keep: int = _POINTS) -> list[Point]:
    """Leave at most `keep` points, the first and the last among them."""
    if len(points) <= keep:
        return list(points)
    step = (len(points) - 1) / (keep - 1)
    return [points[round(number * step)] for number in range(keep)]


def _chart(chart: Chart) -> list[str]:
    x_max = max((x for line in chart.lines for x, _ in line.points), default=1.0) or 1.0
    x_max = max([x_max, *(end for shade in chart.shades for _, end in shade.stretches), *(at for marks in chart.marks for at in marks.at)])
    y_top = max((y for line in chart.lines for _, y in line.points), default=1.0) or 1.0
    y_step, x_step = nice(y_top), nice(x_max)
    scale = _Scale(x_max=x_max, y_max=math.ceil(y_top / y_step - 1e-9) * y_step, bottom=chart.height - _FOOT)
    return [
        f'<text class="title" x="0" y="20">{html.escape(chart.title)}</text>',
        *_shades(chart.shades, scale),
        *_axes(chart, scale, x_step, y_step),
        *(_line(line, scale) for line in chart.lines),
        *_marks(chart.marks, scale),
        *_legend(chart),
    ]


def _shades(shades: Sequence[Shade], scale: _Scale) -> list[str]:
    top, height = _TITLE + 10, scale.bottom - _TITLE - 10
    return [
        f'<rect x="{scale.x(start):.1f}" y="{top}" width="{max(1.0, scale.x(end) - scale.x(start)):.1f}" height="{height:.1f}" '
        f'fill="{shade.colour}" fill-opacity="0.28"/>'
        for shade in shades
        for start, end in shade.stretches
    ]


def _axes(chart: Chart, scale: _Scale, x_step: float, y_step: float) -> list[str]:
    right = WIDTH - _RIGHT
    parts: list[str] = []
    for number in range(round(scale.y_max / y_step) + 1):
        y = scale.y(number * y_step)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#8a94a3" stroke-opacity="0.3"/>')
        parts.append(f'<text class="small" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(number * y_step)}</text>')
    below = scale.bottom + len(chart.marks) * _ROW
    for number in range(int(scale.x_max / x_step + 1e-9) + 1):
        x = scale.x(number * x_step)
        parts.append(f'<text class="small" x="{x:.1f}" y="{below + 18}" text-anchor="middle">{_number(number * x_step)}</text>')
    parts.append(f'<text class="small" x="{right}" y="{below + 34}" text-anchor="end">{html.escape(chart.x_label)}</text>')
    parts.append(f'<text class="small" x="0" y="{_TITLE + 4}">{html.escape(chart.y_label)}</text>')
    return parts


def _line(line: Line, scale: _Scale) -> str:
    points = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in thinned(line.points))
    return f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2" stroke-linejoin="round"/>'


def _marks(rows: Sequence[Marks], scale: _Scale) -> list[str]:
    parts: list[str] = []
    for number, row in enumerate(rows):
        y = scale.bottom + 4 + number * _ROW
        parts += [
            f'<line x1="{scale.x(at):.1f}" y1="{y}" x2="{scale.x(at):.1f}" y2="{y + _ROW - 4}" stroke="{row.colour}"/>' for at in row.at
        ]
        parts.append(f'<text class="small" x="{_LEFT - 6}" y="{y + _ROW - 4}" text-anchor="end">{html.escape(row.label)}</text>')
    return parts


def _legend(chart: Chart) -> list[str]:
    parts: list[str] = []
    x = float(_LEFT)
    for label, colour, opacity in (
        *((line.label, line.colour, 1.0) for line in chart.lines),
        *((s.label, s.colour, 0.4) for s in chart.shades),
    ):
        parts.append(f'<rect x="{x:.0f}" y="{_TITLE - 4}" width="14" height="8" fill="{colour}" fill-opacity="{opacity}"/>')
        parts.append(f'<text x="{x + 20:.0f}" y="{_TITLE + 4}">{html.escape(label)}</text>')
        x += 38 + 6.8 * len(label)
    return parts


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:g}"
