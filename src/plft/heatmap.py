"""A heat map of differences as one SVG: blue is better, orange is worse, and every cell says its number.

It is read on screen, on paper and in grey: colour only repeats what the numbers and the dots say.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

BETTER, WORSE, NEUTRAL = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0xF4, 0xF5, 0xF7)
INK, SOFT, RULE = "#1b1f24", "#59626d", "#b4bac2"  # as in the report's style sheet, which may override them
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TILE_HEIGHT, GAP, GROUP_HEIGHT, HEADER_HEIGHT, LINE = 46, 3, 30, 42, 17
NARROWEST_TILE, WIDEST_TILE, NARROWEST_LABEL, WIDEST_LABEL = 112, 190, 70, 300
LETTER = 7.9  # width of a letter at 13 px, in a wide font
SWATCHES, SWATCH = 9, 24
NARROWEST = 430  # of the whole, for the words below
MARGIN = 16

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Tile:
    """One cell.  large, small: its two lines.  shade: from -1 (worst) to 1 (best); None leaves it uncoloured."""

    large: str
    small: str = ""
    shade: float | None = None
    is_marked: bool = False


@dataclass(frozen=True)
class Group:
    """Rows that belong together under a heading, which may be empty: (label, tiles by column) each."""

    heading: str
    rows: Sequence[tuple[str, Sequence[Tile]]]


@dataclass(frozen=True)
class Legend:
    """What the ends of the scale stand for, and the words below it, one paragraph each; no ends, no scale."""

    ends: tuple[str, str] | None
    words: Sequence[str]


def fill_of(shade: float) -> Colour:
    """Return the colour of a shade between -1 and 1, in equal steps from neutral to the end."""
    end, share = (BETTER if shade > 0 else WORSE), min(abs(shade), 1.0)
    red, green, blue = (round(at + (to - at) * share) for at, to in zip(NEUTRAL, end, strict=True))
    return red, green, blue


def luminance(colour: Colour) -> float:
    """Return the relative luminance of WCAG 2, from 0 (black) to 1."""
    linear = [(c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Colour, other: Colour) -> float:
    """Return the contrast ratio of WCAG 2, from 1 to 21; text wants 4.5."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def text_on(fill: Colour) -> Colour:
    """Return black or white, whichever reads better on a colour: the contrast is always above 4.5."""
    black, white = (0, 0, 0), (255, 255, 255)
    return max((black, white), key=lambda each: contrast(each, fill))


def heat_map(
    columns: Sequence[tuple[str, str]],
    groups: Sequence[Group],
    legend: Legend,
    summary: str,
    *,
    on_paper: bool = False,
) -> Markup:
    """Draw it as an SVG.

    columns: heading and the line below it.  summary: the map in words, for readers who do not see it.  on_paper: on
    white with a margin, for a file of its own; else for a page, whose style sheet may set the colours of its words.
    """
    labels = [label for group in groups for label, _ in group.rows]  # a heading has a line of its own
    left = _clamp(LETTER * max(map(len, labels), default=0) + 14, NARROWEST_LABEL, WIDEST_LABEL)
    longest = max((len(text) for pair in columns for text in pair), default=0)
    wide = _clamp(LETTER * longest + 16, NARROWEST_TILE, WIDEST_TILE)
    width = max(left + len(columns) * (wide + GAP), NARROWEST)
    parts = [_header(columns, left, wide)]
    y = HEADER_HEIGHT if any(below for _, below in columns) else HEADER_HEIGHT - LINE
    for group in groups:
        if group.heading:
            parts.append(_text(0, y + GROUP_HEIGHT - 9, _cut(group.heading, WIDEST_LABEL * 2), INK, "start", bold=True))
            y += GROUP_HEIGHT
        for label, tiles in group.rows:
            parts.append(_text(left - 12, y + TILE_HEIGHT / 2 + 4, _cut(label, left), INK, "end"))
            parts += [_tile(tile, left + at * (wide + GAP), y, wide) for at, tile in enumerate(tiles)]
            y += TILE_HEIGHT + GAP
    below, height = _legend(legend, y + 12, width)
    margin = MARGIN if on_paper else 0
    box = (-margin, -margin, width + 2 * margin, height + 2 * margin)
    left_edge, top, across, down = (f"{each:g}" for each in box)
    paper = f'<rect x="{left_edge}" y="{top}" width="{across}" height="{down}" fill="#ffffff"/>' if on_paper else ""
    label, size = escape(summary), f'width="{across}" height="{down}" viewBox="{left_edge} {top} {across} {down}"'
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="heat" {size} style="max-width:{across}px" '
        f'font-family="{FONT}" role="img" aria-label="{label}">{paper}{"".join(parts)}{below}</svg>'
    )


def _clamp(value: float, low: float, high: float) -> float:
    return round(min(max(value, low), high))


def _cut(text: str, width: float) -> str:
    """Shorten a text in its middle, so that it fits: the end of a model's name says as much as its start."""
    most = int(width / LETTER)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"


def _text(x: float, y: float, text: str, fill: str, anchor: str, size: float = 13, bold: bool = False) -> str:
    weight = ";font-weight:650" if bold else ""
    kind = {INK: ' class="ink"', SOFT: ' class="soft"'}.get(fill, "")
    colour = f' fill="{fill}"' if kind else ""
    style = f"font-size:{size:g}px{weight}" + ("" if kind else f";fill:{fill}")
    return f'<text{kind}{colour} x="{x:g}" y="{y:g}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>'


def _header(columns: Sequence[tuple[str, str]], left: float, wide: float) -> str:
    parts = []
    for at, (heading, below) in enumerate(columns):
        middle = left + at * (wide + GAP) + wide / 2
        parts.append(_text(middle, 14, _cut(heading, wide), INK, "middle", bold=True))
        parts.append(_text(middle, 14 + LINE, _cut(below, wide), SOFT, "middle", 12) if below else "")
    return "".join(parts)


def _tile(tile: Tile, x: float, y: float, wide: float) -> str:
    middle, fill = x + wide / 2, None if tile.shade is None else fill_of(tile.shade)
    colour = INK if fill is None else _hex(text_on(fill))
    box = f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{TILE_HEIGHT}" rx="2" '
    drawn = box + (f'fill="none" stroke="{RULE}"/>' if fill is None else f'fill="{_hex(fill)}"/>')
    lower = 9 if tile.small else 0
    drawn += _text(middle, y + TILE_HEIGHT / 2 + 5 - lower, tile.large, colour, "middle", 15, tile.is_marked)
    drawn += _text(middle, y + TILE_HEIGHT / 2 + 14, tile.small, colour, "middle", 11.5) if tile.small else ""
    if tile.is_marked:
        drawn += f'<circle cx="{x + wide - 11:g}" cy="{y + 11:g}" r="4" fill="{colour}"/>'
    return drawn


def _legend(legend: Legend, y: float, width: float) -> tuple[str, float]:
    """Return the scale with the words below it, and where it ends."""
    parts = []
    if legend.ends is not None:
        start = LETTER * len(legend.ends[0]) + 8
        for at in range(SWATCHES):
            fill = _hex(fill_of(2 * at / (SWATCHES - 1) - 1))
            parts.append(f'<rect x="{start + at * SWATCH:g}" y="{y:g}" width="{SWATCH}" height="12" fill="{fill}"/>')
        parts.append(_text(start - 8, y + 10.5, legend.ends[0], SOFT, "end", 12))
        parts.append(_text(start + SWATCHES * SWATCH + 8, y + 10.5, legend.ends[1], SOFT, "start", 12))
        y += 22
    for paragraph in legend.words:
        for line in textwrap.wrap(paragraph, int(width / 6.1)):
            y += LINE - 1
            parts.append(_text(0, y, line, SOFT, "start", 12))
        y += 3
    return "".join(parts), round(y + 8)


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
