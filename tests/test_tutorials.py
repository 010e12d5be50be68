"""The tutorials: their pages show what their files say, their commands exist, and they run on simulated data."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from pages import blocks_of
from plft.apps.cli import app
from scripts import ROOT, load_script

jupytext = pytest.importorskip("jupytext", reason="pip install 'plft[tutorials]'")

HERE = ROOT / "tutorials"
NAMES = [path.stem for path in sorted(HERE.glob("[0-9]*.py"))]
PAGES = [name for name in NAMES if (ROOT / f"docs/tutorials/{name}.md").exists()]
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that runs the tutorials and writes their pages."""
    monkeypatch.syspath_prepend(HERE)
    return load_script("tutorials/build.py")


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module that decides which data is taken, in a folder of its own and without published data."""
    monkeypatch.delenv("PLFT_DATA", raising=False)
    monkeypatch.setenv("PLFT_TUTORIALS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return load_script("tutorials/data.py")


def notebook_of(name: str) -> Any:
    return jupytext.read(HERE / f"{name}.py")


# --- what they say


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_is_a_notebook_that_begins_with_its_title_and_parses(name):
    cells = notebook_of(name).cells
    assert cells[0].cell_type == "markdown"
    assert re.match(r"# \S", cells[0].source)
    compile("\n".join(cell.source for cell in cells if cell.cell_type == "code"), name, "exec")


def commands_in(text: str) -> list[list[str]]:
    """The plft commands of a text, in words; values that Python fills in stay as they are written."""
    joined = re.sub(r'"\s*\n\s*f?"', "", text.replace("\\\n", " "))  # strings over several lines
    return [shlex.split(found, comments=True) for found in re.findall(r'(?:^|")(plft [a-z-]+ [^"\n]*)', joined, re.M)]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_tutorial_has_the_options_that_it_names(name):
    cells = notebook_of(name).cells
    texts = [block.text for cell in cells if cell.cell_type == "markdown" for block in blocks_of(cell.source + "\n")]
    texts += [cell.source for cell in cells if cell.cell_type == "code"]
    found = [words for text in texts for words in commands_in(text)]
    assert found
    for words in found:
        options = {option for each in COMMANDS[words[1]].params for option in [*each.opts, *each.secondary_opts]}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options, words


def test_commands_are_found_in_strings_over_several_lines():
    text = 'show.command(\n    f"plft train {a} "\n    "--tune lora"\n)\n'
    assert commands_in(text) == [["plft", "train", "{a}", "--tune", "lora"]]


# --- pages


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_cells_of_its_tutorial_in_order(name, build):
    page = (ROOT / f"docs/tutorials/{name}.md").read_text(encoding="utf-8")
    start = 0
    for cell in notebook_of(name).cells:
        at = page.find(build.source_of(cell), start)
        assert at >= 0, f"{name}: run PLFT_DATA=... make tutorials; its page does not hold\n{cell.source}"
        start = at
    assert len(page) < 300_000


def test_the_results_of_the_tutorials_are_those_that_were_recorded(build):
    assert build.PART.findall(build.RESULTS.read_text(encoding="utf-8")) == [build.results_part()]


def test_recorded_rows_are_of_published_data_and_whole(build):
    for name, content in build.recorded().items():
        assert name in NAMES
        for row in content["rows"]:
            assert row["is_real"]
            assert re.search(r"\d \(.* to .*\)|perplexity", row["result"]), row["result"]


def test_a_notebook_becomes_a_page_with_its_output_and_its_pictures(build):
    text = "# %% [markdown]\n# # Title\n# [x](../docs/models.md), [y](1_a.py)\n\n# %%\nprint(1)\n"
    notebook = jupytext.reads(text, "py:percent")
    from nbformat.v4 import new_output

    svg = '<svg aria-label="A [b] c 0.1. More"/>'
    notebook.cells[1].outputs = [
        new_output("stream", name="stdout", text="bar 1\rbar 2\n"),
        new_output("stream", name="stderr", text="a library complains\n"),
        new_output("stream", name="stdout", text="\x1b[1mred\x1b[0m\n"),
        new_output("display_data", {"image/svg+xml": svg, "text/plain": "<SVG>"}),
        new_output("display_data", {"text/markdown": "| a |\n", "text/plain": "<Markdown>"}),
    ]
    page, pictures = build.page_of(notebook, "9_x")
    assert pictures == {"9_x-1.svg": svg + "\n"}
    code, printed = "```python\nprint(1)\n```", "```text\nbar 2\nred\n```"
    blocks = ["# Title\n[x](../models.md), [y](1_a.md)", code, printed, "![A (b) c 0.1](9_x-1.svg)", "| a |"]
    assert page.endswith("\n\n".join(blocks) + "\n")


def test_results_keep_the_part_of_the_tutorials(tmp_path, monkeypatch):
    results = load_script("benchmarks/results.py")
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- tutorials -->\nkept\n<!-- end of tutorials -->\nbehind\n")
    monkeypatch.setattr(results, "PAGE", page)
    results.write_page(tmp_path)
    text = page.read_text()
    assert "\n<!-- tutorials -->\nkept\n<!-- end of tutorials -->\n" in text
    assert not {"before", "behind"} & set(text.splitlines())


# --- data


def test_published_data_is_taken_where_it_is_and_drawn_the_same_way_each_time(data, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    lines = "".join(f"ACD{'K' * at},{at},{'train' if at < 8 else 'test'}\n" for at in range(12))
    (tmp_path / "set/real.csv").write_text("sequence,label,split\n" + lines)
    monkeypatch.setattr(data, "DATA", tmp_path)
    first = data.table("set/real.csv", "seq_regression", {"train": 3})
    rows = data.read_csv("real.csv")
    assert first.is_real
    assert first.either(1, 2) == 1
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 4
    data.table("set/real.csv", "seq_regression", {"train": 3})
    assert data.read_csv("real.csv") == rows


def test_simulated_data_is_taken_and_said_where_the_published_is_missing(data, capsys):
    for kind in data.TABLES:
        found = data.table("set/real.csv", kind, name=kind)
        assert not found.is_real
        assert {row["split"] for row in data.read_csv(found.file)} == {"train", "valid", "test"}
    for kind in data.SEQUENCES:
        assert Path(data.sequences("set/real.fasta", kind).file).read_text().startswith(">")
    for kind in data.FOLDERS:
        parts = sorted(Path(data.folder("set/real", kind).file).iterdir())
        assert [part.name for part in parts] == ["test_sequences.fasta", "train_sequences.fasta"]
    assert capsys.readouterr().out.count("no result") == len(data.TABLES) + len(data.SEQUENCES) + len(data.FOLDERS)


def test_simulated_sites_have_a_tyrosine_in_the_middle_and_a_label_in_the_header(data):
    for text in data.sites().values():
        headers, windows = text.splitlines()[::2], text.splitlines()[1::2]
        assert {header.split()[1] for header in headers} == {"LABEL=0", "LABEL=1"}
        assert {(len(window), window[16]) for window in windows} == {(33, "Y")}


def test_of_a_published_fasta_file_some_or_all_sequences_are_taken(data, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/real.fasta").write_text("".join(f">{at}\n{'ACDEF' * (at + 3)}\n" for at in range(9)))
    monkeypatch.setattr(data, "DATA", tmp_path)
    assert Path(data.sequences("set/real.fasta", "family").file).read_text().count(">") == 9
    assert Path(data.sequences("set/real.fasta", "family", rows=4).file).read_text().count(">") == 4


def test_a_workplace_is_empty(data, tmp_path):
    data.workplace("x")
    Path("left").touch()
    data.workplace("x")
    assert Path.cwd() == tmp_path / "x"
    assert list(Path.cwd().iterdir()) == []


# --- rows


def test_perplexity_is_that_of_all_residues_together(tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("id,length,n_scored,nll,perplexity\na,2,2,2.772588722,4\nb,4,4,8.317766167,8\n")
    (value,) = re.findall(r"^[\d.]+", load_script("tutorials/rows.py").perplexity(scores))
    assert value == "6.35"  # exp((2 log 4 + 4 log 8) / 6)


# --- running


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs_on_simulated_data_and_records_rows_that_are_no_results(name, tmp_path):
    run(name, tmp_path, {"PLFT_DATA": ""})
    rows = json.loads((tmp_path / name / "rows.json").read_text(encoding="utf-8"))
    assert rows
    assert not any(row["is_real"] for row in rows)


@pytest.mark.slow
@pytest.mark.skipif("PLFT_DATA" not in os.environ, reason="PLFT_DATA names no published data")
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs_on_published_data(name, tmp_path):
    run(name, tmp_path, {})
    assert all(row["is_real"] for row in json.loads((tmp_path / name / "rows.json").read_text(encoding="utf-8")))


def run(name: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a tutorial as a script."""
    environment = os.environ | {"PLFT_TUTORIALS": str(folder), "PLFT_CACHE": str(folder / "cache")} | environment
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py")], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
