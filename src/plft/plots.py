"""Plots of the report as small inline SVG: no image files, no scripts, colours from the page's style sheet.

Colours are the classes s0 to s7, which the template sets for light, dark and paper; text takes the colour of the page.
Each plot carries a sentence that says in words what it shows, for readers who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

N_COLOURS = 8
WIDTH, HEIGHT = 420, 290
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 10, 44
POINTS_PER_PATH = 60  # points of one path do not darken each other, so dense regions need several paths


@dataclass(frozen=True)
class Line:
    """One curve: name for the legend, x and y of equal length; marks are dots, joined by a line or not."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    with_marks: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """One axis: a title, what it spans in data units, and where that lies in the drawing (pixels from, to)."""

    title: str
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the position of a value in the drawing."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Four to eight round numbers inside the axis."""
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(about: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(about))
    return magnitude * min((1, 2, 2.5, 5, 10), key=lambda nice: abs(nice - about / magnitude))


def _span(values: Sequence[float], given: tuple[float, float] | None) -> tuple[float, float]:
    """Return the given range, or that of the values with a little air; never an empty one."""
    if given:
        return given
    low, high = min(values), max(values)
    air = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - air, high + air


def _axes(
    x: Sequence[float],
    y: Sequence[float],
    titles: tuple[str, str],
    x_range: tuple[float, float] | None,
    y_range: tuple[float, float] | None,
    height: int,
) -> tuple[Axis, Axis]:
    across = Axis(titles[0], *_span(x, x_range), start=LEFT, end=WIDTH - RIGHT)
    return across, Axis(titles[1], *_span(y, y_range), start=height - BOTTOM, end=TOP)


def typeset(number: str) -> str:
    """Replace the hyphen of a formatted number by a minus sign."""
    return number.replace("-", "\N{MINUS SIGN}")


def significant(number: float, sign: str = "-") -> str:
    """Write three significant digits, thousands in full: 0.0584, 1.10, 12,300; sign "+" writes plus signs too."""
    text = f"{number:{sign},.0f}" if abs(number) >= 1000 else f"{number:{sign}#.3g}".rstrip(".")
    return typeset(text)


def _frame(across: Axis, up: Axis) -> str:
    """Draw grid lines, tick labels and axis titles."""
    parts = []
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{across.start:g} {y:.1f}H{across.end:g}"/>')
        parts.append(
            f'<text x="{across.start - 7:g}" y="{y + 4:.1f}" text-anchor="end">{typeset(f"{tick:.6g}")}</text>'
        )
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {up.start:g}V{up.end:g}"/>')
        parts.append(f'<text x="{x:.1f}" y="{up.start + 16:g}" text-anchor="middle">{typeset(f"{tick:.6g}")}</text>')
    middle_x, middle_y = (across.start + across.end) / 2, (up.start + up.end) / 2
    title = (
        f'<text class="axis" x="{middle_x:g}" y="{up.start + 36:g}" text-anchor="middle">{escape(across.title)}</text>'
    )
    side = (
        f'<text class="axis" transform="translate(11 {middle_y:g}) rotate(-90)" text-anchor="middle">{escape(up.title)}'
    )
    return "".join(parts) + title + side + "</text>"


def _svg(body: str, summary: str, width: int, height: int, css: str = "plot") -> Markup:
    label = escape(summary)
    return Markup(f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{body}</svg>')


def _curve(line: Line, colour: int, across: Axis, up: Axis) -> str:
    points = [(across.at(x), up.at(y)) for x, y in zip(line.x, line.y, strict=True)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    drawn = f'<path class="line s{colour % N_COLOURS}" d="{path}"/>' if line.joined else ""
    if line.with_marks or len(points) == 1:
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        drawn += f'<path class="dots s{colour % N_COLOURS}" d="{dots}"/>'
    return drawn


def line_chart(
    lines: Sequence[Line],
    titles: tuple[str, str],
    summary: str,
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    with_diagonal: bool = False,
    first_colour: int = 0,
) -> Markup:
    """Draw curves over common axes.

    titles: of the x and of the y axis.  summary: the plot in words.  with_diagonal: a dashed line of chance from corner
    to corner.  Lines must hold at least one point in all.
    """
    x, y = [v for line in lines for v in line.x], [v for line in lines for v in line.y]
    across, up = _axes(x, y, titles, x_range, y_range, HEIGHT)
    body = _frame(across, up)
    if with_diagonal:
        body += f'<path class="guide" d="M{across.start:g} {up.start:g}L{across.end:g} {up.end:g}"/>'
    body += "".join(_curve(line, first_colour + at, across, up) for at, line in enumerate(lines) if len(line.x))
    return _svg(body, summary, WIDTH, HEIGHT)


def agreement_chart(true: Sequence[float], predicted: Sequence[float], summary: str) -> Markup:
    """Draw predicted against true values with the line of perfect agreement; both axes have the same range."""
    both = _span([*true, *predicted], None)
    height = WIDTH - LEFT - RIGHT + TOP + BOTTOM
    across, up = _axes(true, predicted, ("true", "predicted"), both, both, height)
    points = [f"M{across.at(x):.1f} {up.at(y):.1f}h0" for x, y in zip(true, predicted, strict=True)]
    size = "small" if len(points) > 500 else "large"
    n_paths = max(1, len(points) // POINTS_PER_PATH)
    clouds = [f'<path class="cloud {size} s0" d="{"".join(points[at::n_paths])}"/>' for at in range(n_paths)]
    diagonal = f'<path class="guide" d="M{across.start:g} {up.start:g}L{across.end:g} {up.end:g}"/>'
    return _svg(_frame(across, up) + "".join(clouds) + diagonal, summary, WIDTH, height)


def interval_bar(value: float, low: float | None, high: float | None, span: tuple[float, float]) -> Markup:
    """Draw a value with its interval on a thin track that covers ``span``; purely an aid to the numbers beside it."""
    track = Axis("", *span, start=4, end=136)
    body = '<path class="track" d="M4 8H136"/>'
    if low is not None and high is not None:
        body += f'<path class="range s0" d="M{track.at(low):.1f} 8H{track.at(high):.1f}"/>'
    body += f'<path class="dots s0" d="M{track.at(value):.1f} 8h0"/>'
    return Markup(f'<svg class="bar" viewBox="0 0 140 16" aria-hidden="true">{body}</svg>')
