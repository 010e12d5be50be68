"""Damaged files: whatever a mutation makes of a valid file, the command line answers with one line or does its work.

Every mutation comes from a seed, so that a failure can be made again: its number is in the message.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commandline import plft

Table = list[dict[str, Any]]
Mutation = Callable[[bytes, random.Random], bytes]

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
VALUES = ["inf", "nan", "-100", "1e400", "-1", "999", "0", "NaN", "None", "true", "é", "日本", "🧬", ""]
STRANGE = [*VALUES, *"*-'\"\\|>={[,;", "\u202e", "\ud7ff", "\0", "\x1b[31m", "\ufeff", "\xa0", "\r", "\n\n", "\t", " "]


# --- valid files


def rows(seed: int) -> Table:
    """Twelve sequences with everything a file may say of them."""
    chance = random.Random(seed)
    residues = seed % 2 == 1
    made = []
    for at in range(12):
        sequence = "".join(chance.choices(LETTERS, k=chance.randint(6, 14)))
        label = "".join(chance.choices("HC", k=len(sequence))) if residues else ("no", "yes")[at % 2]
        mask = "".join(chance.choices("01", weights=(1, 5), k=len(sequence))) if residues else ""
        split = ("train", "train", "train", "valid", "test", "test")[at % 6]
        made.append({"id": f"s{at}", "sequence": sequence, "label": label, "split": split, "mask": mask, "weight": "1"})
    return made


def delimited(sign: str) -> Callable[[Table], bytes]:
    """A table as text."""

    def write(table: Table) -> bytes:
        return "\n".join([sign.join(table[0]), *(sign.join(row.values()) for row in table)]).encode() + b"\n"

    return write


def json_lines(table: Table) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(row, default=str) + "\n" for row in table).encode()


def fasta(table: Table) -> bytes:
    """Entries with KEY=VALUE in their headers."""
    keys = ("label", "split", "mask")
    words = [" ".join(f"{key.upper()}={row[key]}" for key in keys if row[key]) for row in table]
    entries = zip(table, words, strict=True)
    return "".join(f">{row['id']} {text}\n{row['sequence']}\n" for row, text in entries).encode()


def parquet(table: Table) -> bytes:
    """A Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table), sink)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, Callable[[Table], bytes]] = {
    "csv": delimited(","),
    "tsv": delimited("\t"),
    "jsonl": json_lines,
    "fasta": fasta,
    "parquet": parquet,
}


# --- what can happen to them


def flip_bytes(content: bytes, chance: random.Random) -> bytes:
    """Change a few bytes to any others."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def change_letters(content: bytes, chance: random.Random) -> bytes:
    """Change a few letters and digits to others."""
    places = [match.start() for match in re.finditer(rb"[A-Za-z0-9]", content)]
    changed = bytearray(content)
    for place in chance.sample(places, min(len(places), chance.randint(1, 8))):
        changed[place] = chance.choice(b"ACDXJZcoh012.")
    return bytes(changed)


def cut_short(content: bytes, chance: random.Random) -> bytes:
    """Lose the end."""
    return content[: chance.randrange(len(content))]


def lose_a_piece(content: bytes, chance: random.Random) -> bytes:
    """Lose a piece somewhere."""
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.randint(1, 40) :]


def repeat_a_piece(content: bytes, chance: random.Random) -> bytes:
    """Repeat a piece somewhere else."""
    start, to = chance.randrange(len(content)), chance.randrange(len(content))
    return content[:to] + content[start : start + chance.randint(1, 60)] + content[to:]


def shuffle_lines(content: bytes, chance: random.Random) -> bytes:
    """Lose, repeat or move lines."""
    lines = content.split(b"\n")
    at, to = chance.randrange(len(lines)), chance.randrange(len(lines))
    line = lines[at] if chance.random() < 0.5 else lines.pop(at)
    return b"\n".join(lines[:to] + [line] * chance.randint(0, 3) + lines[to:])


def swap_signs(content: bytes, chance: random.Random) -> bytes:
    """Write one separator for another, everywhere or in one place."""
    old, new = chance.sample([b",", b"\t", b";", b" ", b"\n", b"\r\n", b'"', b"=", b">", b":", b"|"], 2)
    return content.replace(old, new, chance.choice([1, 3, -1]))


def insert_text(content: bytes, chance: random.Random) -> bytes:
    """Put something strange between the letters."""
    changed = content
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed) + 1)
        changed = changed[:at] + chance.choice(STRANGE).encode() + changed[at:]
    return changed


def replace_a_word(content: bytes, chance: random.Random) -> bytes:
    """Put something strange in the place of a word: a label, a split, a weight, the name of a column."""
    words = [word.span() for word in re.finditer(rb"[A-Za-z0-9]+", content)]
    start, stop = chance.choice(words or [(0, 0)])
    return content[:start] + chance.choice(STRANGE).encode() + content[stop:]


def re_encode(content: bytes, chance: random.Random) -> bytes:
    """Save it in another encoding."""
    return content.decode("latin-1").encode(chance.choice(["utf-16", "utf-8-sig", "utf-32", "cp500"]))


MUTATIONS: tuple[Mutation, ...] = (
    flip_bytes,
    change_letters,
    cut_short,
    lose_a_piece,
    repeat_a_piece,
    shuffle_lines,
    swap_signs,
    insert_text,
    replace_a_word,
    re_encode,
)


def spoil_cells(table: Table, chance: random.Random, typed: bool) -> Table:
    """Put strange values into a well-formed table; typed: values of other types too, in whole columns as Parquet wants.

    The wrong file is then one that every reader can read, and what it says is wrong.
    """
    spoilt = [dict(row) for row in table]
    column = chance.choice(list(table[0]))
    if typed and chance.random() < 0.5:
        value = chance.choice([None, 3, 2.5, True, [0.5, 1.5], ["a"], {"a": 1}, b"MKT", 10**15, [[1]]])
        for row in spoilt:
            row[column] = value
    for row in chance.sample(spoilt, chance.randint(1, 6)):
        if isinstance(row[column], str):
            row[column] = chance.choice([*STRANGE, table[0]["label"], table[0]["sequence"], "train", "a|b", "1 2 3"])
    return spoilt


def mutated(folder: Path, number: int) -> Path:
    """Write the damaged file of that number: its format, its mutations and whether it is compressed follow from it."""
    chance = random.Random(number)
    name = list(FORMATS)[number % len(FORMATS)]
    table, whole = rows(number // len(FORMATS)), chance.random() < 0.4
    if whole:
        table = spoil_cells(table, chance, typed=name in ("jsonl", "parquet"))
    content = FORMATS[name](table)
    compress = name != "parquet" and chance.random() < 0.15
    if compress and chance.random() < 0.5:
        content = gzip.compress(content, mtime=0)
        compress, name = False, f"{name}.gz"
    for mutation in chance.sample(MUTATIONS, 0 if whole else chance.choice([1, 1, 1, 2, 3])):
        content = mutation(content, chance) if content else content
    file = folder / f"{number}.{name}{'.gz' if compress else ''}"
    file.write_bytes(gzip.compress(content, mtime=0) if compress else content)
    return file


# --- what must hold


def check_answer(number: int, *words: str) -> str:
    """Run a command on a damaged file; returns what it answered: "done" or the kind of complaint."""
    result = plft(*words)
    where = f"file {number}: plft {' '.join(words)}\n{result.err}"
    assert result.code in (0, 1), where
    assert "Traceback" not in result.err, where
    if result.code == 0:
        return "done"
    *said, last = result.err.strip().split("\n")
    assert last.startswith("Error: "), where
    assert all(line.startswith("·") for line in said), where
    assert last.isprintable(), where
    return "complaint"


def fuzz(folder: Path, numbers: range, with_training: bool, more: tuple[str, ...] = ()) -> Counter[str]:
    """Give each damaged file to `check`, or to `train --max-steps 1` with more words; counts the answers."""
    answers: Counter[str] = Counter()
    for number in numbers:
        file, out = mutated(folder, number), folder / "out"
        words = [
            "train",
            str(file),
            "--model",
            "scratch:tiny-esm2",
            "--tune",
            "head",
            "--max-steps",
            "1",
            "--out",
            str(out),
            *more,
        ]
        answer = check_answer(number, *(words if with_training else ["check", str(file)]))
        assert out.exists() == (with_training and answer == "done"), (
            f"file {number}: a failed run left something behind"
        )
        shutil.rmtree(out, ignore_errors=True)
        file.unlink()
        answers[answer] += 1
    return answers


def test_check_answers_whatever_happened_to_a_file(tmp_path: Path) -> None:
    answers = fuzz(tmp_path, range(200), with_training=False)
    assert min(answers["done"], answers["complaint"]) > 20  # otherwise the mutations are too weak, or too strong


def test_train_answers_whatever_happened_to_a_file(tmp_path: Path) -> None:
    answers = fuzz(tmp_path, range(1000, 1015), True, ("--set", "baselines.run=false"))
    assert answers["complaint"] > 3


@pytest.mark.slow
def test_check_answers_for_a_thousand_damaged_files(tmp_path: Path) -> None:
    fuzz(tmp_path, range(1000), with_training=False)


@pytest.mark.slow
def test_train_answers_for_a_thousand_damaged_files(tmp_path: Path) -> None:
    fuzz(tmp_path, range(1000), with_training=True)
