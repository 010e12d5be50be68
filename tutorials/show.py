"""How the tutorials show things: a command with what it prints, a table, a picture; in a notebook and in a script."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from markupsafe import escape

from plft.plots import HEIGHT, WIDTH, Line, line_chart

QUIET = {"COLUMNS": "110", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
COLOURED = ("FORCE_COLOR", "CLICOLOR_FORCE")  # set by notebooks, which cannot draw the bars of a terminal
PICTURES = "picture-{}.svg"  # of a script, which has nowhere to show them


def command(line: str) -> None:
    """Run a plft command as if it were typed in a terminal, and show what it prints, line by line."""
    words = shlex.split(line.replace("\\\n", " "))
    assert words[0] == "plft", f"no plft command: {line}"
    print(f"$ {line}", flush=True)
    run = [sys.executable, "-m", *words]
    environment = {name: value for name, value in os.environ.items() if name not in COLOURED} | QUIET
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", env=environment
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            print(text, end="", flush=True)
    if process.returncode:
        raise RuntimeError(f"The command ended with {process.returncode}: {line}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Show a table; numbers are rounded to three digits after the point."""
    lines = [columns, ["---"] * len(columns), *([cell(each) for each in row] for row in rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if in_notebook():
        from IPython.display import Markdown, display

        display(Markdown(text))
    else:
        print(text)


def cell(value: Any) -> str:
    """A number or a word, for a table."""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def picture(drawn: Any) -> None:
    """Show a picture: a path to an SVG, the text of one, or a matplotlib figure, which is then closed."""
    text = svg_of(drawn)
    if in_notebook():
        from IPython.display import SVG, display

        display(SVG(data=text))
        return
    number = next(n for n in range(1, 1000) if not Path(PICTURES.format(n)).exists())
    Path(PICTURES.format(number)).write_text(text, encoding="utf-8")
    print(f"Picture: {Path(PICTURES.format(number)).resolve()}")


STYLE = """<style>
text { font: 12px sans-serif; fill: #444 } .grid { stroke: #ddd }
.line { stroke-width: 2; fill: none } .dots { stroke-width: 6; stroke-linecap: round }
.s0 { stroke: #0072b2 } .s1 { stroke: #d55e00 } .s2 { stroke: #00795a } .s3 { stroke: #b0568c } .s4 { stroke: #b57a00 }
.key { stroke: none; font-weight: 600 } text.s0 { fill: #0072b2 } text.s1 { fill: #d55e00 } text.s2 { fill: #00795a }
text.s3 { fill: #b0568c } text.s4 { fill: #b57a00 }
</style>"""


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], titles: tuple[str, str], summary: str) -> None:
    """Show curves, each a name with its points, and their names below in the same colours.

    titles: of the axes.  summary: what the picture shows, in words.
    """
    drawn = [Line(name, *zip(*points, strict=True), with_marks=True) for name, points in lines.items()]
    chart = str(line_chart(drawn, titles, summary))
    names = "".join(
        f'<text class="key s{at}" x="60" y="{HEIGHT + 14 + 18 * at}">{escape(name)}</text>'
        for at, name in enumerate(lines)
    )
    height, start = HEIGHT + 18 * len(lines) + 6, chart.index(">") + 1
    head = chart[:start].replace(f"{WIDTH} {HEIGHT}", f"{WIDTH} {height}")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="560" ')
    paper = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'  # so that it reads on a dark page too
    picture(f"{head}{STYLE}{paper}{chart[start:].removesuffix('</svg>')}{names}</svg>\n")


def svg_of(drawn: Any) -> str:
    """The text of an SVG, whatever it is given as."""
    if hasattr(drawn, "savefig"):
        import matplotlib.pyplot as plt

        file = StringIO()
        with plt.rc_context({"svg.hashsalt": "plft", "svg.fonttype": "none"}):  # the same text for the same figure
            drawn.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(drawn)
        return file.getvalue()
    return drawn.read_text(encoding="utf-8") if isinstance(drawn, Path) else str(drawn)


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    return "ipykernel" in sys.modules
