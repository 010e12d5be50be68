"""The pages of the documentation: their fenced blocks, and running these."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commandline import plft
from plft.builtin.demo import demo_records
from scripts import ROOT

DOCS = ROOT / "docs"


def name_of(page: Path) -> str:
    """A page as the tests name it: its path from the project's root."""
    return page.relative_to(ROOT).as_posix()


def text_of(name: str) -> str:
    """The text of a page."""
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
    fence = re.compile(
        r"(?:^<!-- (file|not run): ([^\n]+) -->\n)?^```([\w{}-]*)[^\n`]*\n(.*?)^```$", re.MULTILINE | re.DOTALL
    )
    for found in fence.finditer(page):
        kind, what, language, text = found.groups()
        line = page.count("\n", 0, found.start()) + 1
        notes = {"file": what} if kind == "file" else {"not_run": what} if kind else {}
        yield Block(language, text, line, **notes)


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


QUICKLY = ["--set", "training.max_steps=2", "--set", "baselines.run=false"]
SHORT = {
    "train": ["--max-steps", "2", "--set", "baselines.run=false"],
    "compare": ["--seeds", "1", *QUICKLY],
    "tune": ["--trials", "2", *QUICKLY],
}


def shortened(words: list[str]) -> list[str]:
    """A command with a budget of seconds: two steps, no baselines, one seed, one model or two trials."""
    if words[1] in ("pretrain", "adapt") and "--minutes" in words:
        at = words.index("--minutes")
        words = [*words[:at], "--steps", "2", *words[at + 2 :]]
    if words[1] == "compare" and "--models" in words:
        at = words.index("--models") + 1
        words = [*words[:at], words[at].partition(",")[0], *words[at + 1 :]]
    return [*words, *SHORT.get(words[1], [])]


def run_commands(text: str) -> None:
    """Run the plft commands of a block, shortened."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "plft", f"'{line}' is no plft command: write <!-- not run: reason --> before the block"
        result = plft(*shortened(words)[1:])
        assert result.code == 0, f"{line}\n{result.err}"


def run_page(name: str) -> None:
    """Everything that a page shows, in the current folder; a block that is marked as not run is left out."""
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
