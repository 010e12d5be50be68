"""Run the tutorials as notebooks, and write their pages and the rows that they recorded for docs/results.md.

    python tutorials/build.py [NAME ...] [--pages]

With PLFT_DATA (a folder that holds the published data sets) the pages in docs/tutorials, the rows in tutorials/rows and
the tutorials' part of docs/results.md are written. Without it the tutorials run on small simulated sets, and only the
notebooks in build/tutorials are. --pages runs nothing and writes docs/results.md and the list of tutorials again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jupytext

HERE = Path(__file__).parent
ROWS, PAGES = HERE / "rows", HERE.parent / "docs" / "tutorials"
RESULTS = HERE.parent / "docs" / "results.md"
BUILD = HERE.parent / "build" / "tutorials"
PART = re.compile(r"<!-- tutorials -->\n.*?<!-- end of tutorials -->\n", re.DOTALL)


def main() -> None:
    """Run what is asked for and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of tutorials, for example 1_fine_tuning")
    parser.add_argument("--pages", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    spent = [build(path) for path in tutorials() if path.stem in (chosen.names or [path.stem]) and not chosen.pages]
    if spent:
        wall, processor = (sum(each) for each in zip(*spent, strict=True))
        print(f"{len(spent)} tutorials in {wall:.1f} minutes, {processor:.1f} of processor time; notebooks in {BUILD}")
    write_results()
    write_missing_pages()
    write_index()


def tutorials() -> list[Path]:
    """The tutorials in their order."""
    return sorted(HERE.glob("[0-9]*.py"))


# --- running


def build(path: Path) -> tuple[float, float]:
    """Run one tutorial as a notebook; with published data write its page and rows too. Returns its minutes."""
    notebook = jupytext.read(path)
    wall, processor = run(notebook, path.stem)
    print(f"{path.stem}: {wall:.1f} minutes, {processor:.1f} of processor time")
    recorded = BUILD / "runs" / path.stem / "rows.json"
    rows = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else []
    if rows and all(row["is_real"] for row in rows):
        ROWS.mkdir(exist_ok=True)
        content = {"minutes": round(wall, 1), "processor_minutes": round(processor, 1), "rows": rows}
        (ROWS / f"{path.stem}.json").write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        write_page(notebook, path.stem, wall, processor)
    else:
        print("  Published data is not all here (PLFT_DATA): the page and the rows are left as they are.")
    return wall, processor


def run(notebook: Any, name: str) -> tuple[float, float]:
    """Run every cell, and keep the notebook whether it succeeds or not; returns minutes and those of the processor."""
    from nbclient import NotebookClient

    runs = BUILD / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PLFT_TUTORIALS": str(runs), "PYTHONPATH": os.pathsep.join(paths)}
    os.environ |= {"PYTHONWARNINGS": "ignore:IProgress not found"}  # a widget that nobody would see
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(runs)}},
        extra_arguments=["--log-level=ERROR"],
    )
    total, started, used = len(notebook.cells), time.monotonic(), processor_seconds()
    client.on_cell_start = lambda cell, cell_index: report(name, cell, cell_index, total, time.monotonic() - started)
    try:
        client.execute()
    finally:
        jupytext.write(notebook, BUILD / f"{name}.ipynb")
    return (time.monotonic() - started) / 60, (processor_seconds() - used) / 60


def processor_seconds() -> float:
    """Processor time of every process that this one has started and that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(name: str, cell: Any, index: int, total: int, seconds: float) -> None:
    """Say which cell runs now."""
    if cell.cell_type == "code":
        print(f"{name}: cell {index + 1} of {total}, {seconds:.0f} s", file=sys.stderr, flush=True)


# --- pages


def write_page(notebook: Any, name: str, wall: float, processor: float) -> None:
    """Write the page of an executed notebook, with its pictures beside it."""
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.glob(f"{name}-*.svg"):
        old.unlink()
    text, pictures = page_of(notebook, name)
    ran = f"{wall:.0f} minutes, {processor:.0f} of processor time" if wall >= 1 else "less than a minute"
    text += f"\nThis page was made by running `tutorials/{name}.py`, which took {ran}: {machine()}.\n"
    (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
    for picture, svg in pictures.items():
        (PAGES / picture).write_text(svg, encoding="utf-8")


def machine() -> str:
    """The machine in words."""
    from plft.language_run import hardware

    return f"{hardware()} of {os.cpu_count()} processors".replace("(R)", "")


def page_of(notebook: Any, name: str) -> tuple[str, dict[str, str]]:
    """A notebook as Markdown, and the pictures that it names: text, code and what the code showed, in order."""
    blocks, pictures = [f"<!-- Written by tutorials/build.py from tutorials/{name}.py -->"], {}
    for cell in notebook.cells:
        blocks.append(source_of(cell))
        for kind, content in merged(cell.get("outputs", [])):
            if kind == "picture":
                pictures[f"{name}-{len(pictures) + 1}.svg"] = content
                content = f"![{described(content)}]({list(pictures)[-1]})"
            blocks.append(content if kind != "text" else f"```text\n{content}\n```")
    return "\n\n".join(blocks) + "\n", pictures


def source_of(cell: Any) -> str:
    """The source of a cell as it stands on the page, where links into docs/ and to other tutorials lead to pages."""
    if cell.cell_type == "markdown":
        pages = re.sub(r"\]\((\d\w+)\.py\)", r"](\1.md)", str(cell.source))
        return re.sub(r"\]\(\.\./(docs/)?", lambda found: "](../" if found[1] else "](../../", pages)
    return f"```python\n{cell.source}\n```"


def merged(outputs: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """What a cell showed: ("text" | "markdown" | "picture", content); printed lines that follow each other are one.

    What libraries write to stderr is left out; what commands write there is part of what `show.command` prints.
    """
    printed = ""
    for output in outputs:
        if output.output_type == "stream":
            printed += output.text if output.name == "stdout" else ""
            continue
        if printed.strip():
            yield "text", readable(printed)
        printed = ""
        yield shown(output)
    if printed.strip():
        yield "text", readable(printed)


def shown(output: Any) -> tuple[str, str]:
    """The richest form of an output that a page can hold."""
    forms = output.data
    if "image/svg+xml" in forms:
        return "picture", forms["image/svg+xml"].strip() + "\n"
    if "text/markdown" in forms:
        return "markdown", forms["text/markdown"].strip()
    return "text", readable(forms["text/plain"])


def readable(printed: str) -> str:
    """Printed text without colours, folders of this machine, and what a progress bar wrote over."""
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", printed).replace(f"{BUILD / 'runs'}/", "")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in plain.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def described(svg: str) -> str:
    """The first sentence that an SVG says of itself, for readers who do not see it."""
    found = re.search(r'aria-label="([^"]*)"', svg)
    return found[1].split(". ")[0].replace("[", "(").replace("]", ")") if found else "Picture"


def write_index() -> None:
    """Write the list of the tutorials."""
    names = [path.stem for path in tutorials()]
    rows = [f"| [{title_of(name)}]({name}.md) | `tutorials/{name}.py` | {minutes_of(name)} |" for name in names]
    table = "\n".join(["| tutorial | file | minutes |", "|---|---|---|", *rows])
    tree = "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])
    (PAGES / "index.md").write_text(f"{INDEX}\n{table}\n\n{tree}\n", encoding="utf-8")


def write_missing_pages() -> None:
    """Write a page without output for every tutorial that was not run on published data yet, so that links lead on."""
    PAGES.mkdir(exist_ok=True)
    for path in tutorials():
        if not (ROWS / f"{path.stem}.json").exists():
            text, _ = page_of(jupytext.read(path), path.stem)
            (PAGES / f"{path.stem}.md").write_text(text + NOT_RUN, encoding="utf-8")


NOT_RUN = "\nThis page shows no output yet: `PLFT_DATA=folder make tutorials` runs it on published data.\n"


INDEX = """<!-- Written by tutorials/build.py -->

# Tutorials

Each is a Python file that runs from start to finish on a laptop without a GPU and without a network, and a notebook
(`make tutorials` writes them to `build/tutorials`). The pages show what a run on published data printed; what they
reached is in [results](../results.md#tutorials). Without that data the same files run in about a minute each on small
simulated sets.

<!-- not run: takes minutes -->
```bash
python tutorials/1_fine_tuning.py
```

To run them on published data name the folder that holds it in `PLFT_DATA`, laid out as the first lines of each page
say. Minutes are those of the run that the page shows.
"""


def title_of(name: str) -> str:
    """The first heading of a tutorial."""
    found = re.search(r"^# # (.+)$", (HERE / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, f"{name}.py has no title"
    return found[1]


# --- results


def recorded() -> dict[str, dict[str, Any]]:
    """What the tutorials recorded on published data, by tutorial."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(ROWS.glob("*.json"))}


def minutes_of(name: str) -> str:
    """How long a tutorial took on published data."""
    found = recorded().get(name)
    return f"{found['minutes']:.0f}" if found else ""


def write_results() -> None:
    """Put the rows into their part of docs/results.md; benchmarks/results.py writes the rest of the page."""
    page = RESULTS.read_text(encoding="utf-8")
    assert len(PART.findall(page)) == 1, f"{RESULTS} has no part for the tutorials"
    RESULTS.write_text(PART.sub(lambda _: results_part(), page), encoding="utf-8")


def results_part() -> str:
    """The tutorials' part of docs/results.md."""
    lines = [line_of(name, row) for name, content in recorded().items() for row in content["rows"]]
    table = "\n".join([TUTORIALS, *lines]) if lines else NOTHING
    return f"<!-- tutorials -->\n{table}\n<!-- end of tutorials -->\n"


NOTHING = "## Tutorials\n\nThe [tutorials](tutorials/index.md) were not run on published data yet."


TUTORIALS = """## Tutorials

What the [tutorials](tutorials/index.md) reached, as `make tutorials` recorded it. Weights are all of the model and
those that were trained; minutes are for training and testing on two CPU cores. Intervals are 95 % bootstrap intervals
over test sequences. The rows with `builtin:protein` are of the version before its last stretches of training, those of
tutorial 4 from before Muon became the optimiser of new models.

| data | train / test sequences | model | weights: all, trained | minutes | result | published |
|---|---|---|---|---|---|---|"""


def line_of(name: str, row: dict[str, Any]) -> str:
    """One line of the table, whose first cell leads to the tutorial."""
    data = f"[{row['data']}](tutorials/{name}.md)"
    weights = f"{row['weights']:,}, {row['trainable']:,}"
    cells = [data, f"{row['train']:,} / {row['test']:,}", row["model"], weights, f"{row['minutes']:.1f}"]
    return f"| {' | '.join([*cells, row['result'], row['published']])} |"


if __name__ == "__main__":
    main()
