"""The heat map: well-formed, readable in colour and in grey, and what it says in words."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from plft.heatmap import Group, Legend, Tile, contrast, fill_of, heat_map, text_on

SVG = "{http://www.w3.org/2000/svg}"
LEGEND = Legend(("−0.1", "+0.1"), ["What it is."])


def drawn(*tiles: Tile, label: str = "full", on_paper: bool = False) -> ET.Element:
    columns = [(f"data {at}", "MCC") for at in range(len(tiles))]
    return ET.fromstring(heat_map(columns, [Group("model", [(label, tiles)])], LEGEND, "In words.", on_paper=on_paper))


def texts(svg: ET.Element) -> list[str]:
    return [str(each.text) for each in svg.iter(f"{SVG}text")]


def test_black_on_white_has_the_contrast_of_wcag() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((0x76, 0x76, 0x76), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)


def test_numbers_can_be_read_on_every_shade() -> None:
    for shade in np.linspace(-1, 1, 101):
        fill = fill_of(shade)
        assert contrast(fill, text_on(fill)) >= 4.5


def test_shades_darken_evenly_to_both_sides_and_the_middle_is_neutral() -> None:
    grey = [contrast(fill_of(shade), (255, 255, 255)) for shade in np.linspace(-1, 1, 21)]
    assert grey == sorted(grey[:11], reverse=True) + sorted(grey[11:])
    red, _, blue = fill_of(0.01)
    assert abs(red - blue) < 8
    assert fill_of(5) == fill_of(1)


def test_a_cell_says_its_number_and_only_a_marked_one_has_a_dot() -> None:
    svg = drawn(Tile("+0.05", "0.80", 0.5), Tile("−0.02", "0.73", -0.2, is_marked=True))
    assert {"+0.05", "0.80", "−0.02", "0.73", "data 0", "data 1", "model", "full"} <= set(texts(svg))
    assert len(list(svg.iter(f"{SVG}circle"))) == 1


def test_everything_lies_within_the_drawing() -> None:
    svg = drawn(*[Tile("+0.05", "0.80", 0.5)] * 7, on_paper=True)
    left, top, width, height = map(float, svg.attrib["viewBox"].split())
    for box in svg.iter(f"{SVG}rect"):
        x, y, wide, high = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert left <= x
        assert top <= y
        assert x + wide <= left + width + 1e-6
        assert y + high <= top + height + 1e-6


def test_a_file_of_its_own_stands_on_white() -> None:
    assert next(drawn(Tile("0"), on_paper=True).iter(f"{SVG}rect")).attrib["fill"] == "#ffffff"
    assert next(drawn(Tile("0")).iter(f"{SVG}rect")).attrib["fill"] == "none"


def test_names_of_the_user_are_escaped_and_long_ones_cut_in_the_middle() -> None:
    svg = drawn(Tile("0"), label="<script>" + "x" * 80 + "end")
    label = next(text for text in texts(svg) if "<script>" in text)
    assert "…" in label
    assert label.endswith("xend")
    assert len(label) < 40


def test_it_needs_nothing_from_elsewhere_and_says_itself_in_words() -> None:
    text = str(heat_map([("a", "")], [Group("", [("full", [Tile("0")])])], LEGEND, "In words.", on_paper=True))
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    assert "var(" not in text
    assert 'aria-label="In words."' in text
