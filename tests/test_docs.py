"""README and docs keep their word: what they show runs, where they point exists, and no name is left out."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from commandline import plft
from plft.apps.cli import app
from plft.builtin.demo import demo_records
from plft.checkpoints import SHORT_NAMES
from plft.families import FAMILIES
from plft.formats import READERS
from plft.heads import HEADS, POOLINGS
from plft.metrics import METRICS
from plft.scratch import ARCHITECTURES
from plft.tuning import METHODS
from scripts import ROOT, load_script

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- blocks


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and what the comment before it says."""

    language: str
    text: str
    line: int
    file: str = ""
    not_run: str = ""


def blocks_of(page: str) -> Iterator[Block]:
    fence = re.compile(r"(?:^<!-- (file|not run): ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for found in fence.finditer(page):
        kind, what, language, text = found.groups()
        line = page.count("\n", 0, found.start()) + 1
        notes = {"file": what} if kind == "file" else {"not_run": what} if kind else {}
        yield Block(language, text, line, **notes)


def test_blocks_are_found_with_the_comment_before_them():
    page = "A\n\n<!-- not run: why -->\n```bash\nplft x\n```\n\n```python\nprint()\n```\n"
    assert list(blocks_of(page)) == [
        Block("bash", "plft x\n", 3, not_run="why"),
        Block("python", "print()\n", 8),
    ]


# --- the files that the pages speak of


def write_csv(name: str, rows: list[dict[str, Any]]) -> None:
    with open(name, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_the_files_of_the_pages() -> None:
    """proteins.csv and its parts, more.csv, new.fasta, stability.csv, promoters.csv in the current folder."""
    records = demo_records(n=60)
    rows = [{"id": each.id, "sequence": each.sequence, "label": each.label, "split": each.split} for each in records]
    write_csv("proteins.csv", rows)
    for part in ("train", "valid", "test"):
        write_csv(f"{part}.csv", [row for row in rows if row["split"] == part])
    write_csv("more.csv", [{"sequence": row["sequence"], "label": row["label"]} for row in rows[:20]])
    Path("new.fasta").write_text("".join(f">{row['id']}\n{row['sequence']}\n" for row in rows[:5]))
    numbers = [row["sequence"].count("L") / 7 for row in rows]
    extra = [{"stability": number, "temperature": 20 + at % 40} for at, number in enumerate(numbers)]
    write_csv("stability.csv", [{"sequence": row["sequence"], **more} for row, more in zip(rows, extra, strict=True)])
    letters = str.maketrans("ACDEFGHIKLMNPQRSTVWY", "ACGT" * 5)
    dna = [{"sequence": row["sequence"].translate(letters), "label": row["label"]} for row in rows]
    write_csv("promoters.csv", dna)


# --- running


SHORT = {
    "train": ["--max-steps", "2"],
    "compare": ["--seeds", "1", "--set", "training.max_steps=2", "--set", "baselines.run=false"],
}


def run_commands(text: str) -> None:
    """Run the plft commands of a block; training stops after two steps, comparisons need one seed."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "plft", f"'{line}' is no plft command: write <!-- not run: reason --> before the block"
        result = plft(*words[1:], *SHORT.get(words[1], []))
        assert result.code == 0, f"{line}\n{result.err}"


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_a_page_shows_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_the_files_of_the_pages()
    values: dict[str, Any] = {}
    for block in blocks_of(text_of(name)):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.not_run:
            continue
        elif block.language in ("bash", "console"):
            run_commands(block.text)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, name, "exec"), values)


# --- pointing


def headings(page: str) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_between_files_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name} points at {target}"
        assert not anchor or anchor in headings(path.read_text(encoding="utf-8")), f"{name} points at {target}"


# --- completeness


def test_the_configuration_reference_is_current():
    fresh = load_script("docs/make_configuration.py").reference()
    assert text_of("docs/configuration.md") == fresh, "run: python docs/make_configuration.py"


def test_readme_has_an_example_of_every_command():
    commands = [each.name or each.callback.__name__ for each in app.registered_commands]
    shown = "\n".join(block.text for block in blocks_of(text_of("README.md")))
    assert [each for each in commands if not re.search(rf"^plft {each}\b", shown, re.MULTILINE)] == []


KNOWN = {
    "docs/models.md": [
        *FAMILIES,
        *(each.title for each in FAMILIES.values()),
        *SHORT_NAMES,
        *SHORT_NAMES.values(),
        *(each for each in ARCHITECTURES if not each.startswith("tiny-")),
    ],
    "docs/tuning.md": [*METHODS, *HEADS, *POOLINGS],
    "docs/run-folder.md": list(METRICS),
    "docs/data-formats.md": list(READERS),
}


@pytest.mark.parametrize("name", KNOWN)
def test_tables_name_every_row_there_is(name):
    page = text_of(name)
    assert [each for each in KNOWN[name] if f"`{each}`" not in page and f"| {each} |" not in page] == []


def test_the_tuning_page_states_the_default_learning_rates():
    for line in text_of("docs/tuning.md").splitlines():
        for method in METHODS.values():
            if line.startswith(f"| `{method.name}` |"):
                rates = [float(each) for each in re.findall(r"\d+e-\d+", line)]
                assert rates == [method.learning_rate, method.scratch_learning_rate], line


def test_contributing_is_short_and_ends_in_its_table():
    lines = text_of("CONTRIBUTING.md").splitlines()
    assert len(lines) < 40
    assert lines[-1].startswith("| ")
