"""How the tutorials show things: a command with what it prints, a table, a picture; in a notebook and in a script."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

QUIET = {"COLUMNS": "110", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
PICTURES = "picture-{}.svg"  # of a script, which has nowhere to show them


def command(line: str) -> None:
    """Run a plft command as if it were typed in a terminal, and show what it prints, line by line."""
    words = shlex.split(line.replace("\\\n", " "))
    assert words[0] == "plft", f"no plft command: {line}"
    print(f"$ {line}", flush=True)
    run = [sys.executable, "-m", *words]
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", env=os.environ | QUIET
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
