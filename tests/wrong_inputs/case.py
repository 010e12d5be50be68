"""What a case of wrong input is, and what the cases are made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import tiny

PROTEINS = (
    "MKTAYIAKQR",
    "QISFVKSHFS",
    "RQLEERLGLI",
    "EVQAPILSRV",
    "GDGTQDNLSG",
    "AEKAVQVKVK",
    "ALPDAQFEVV",
    "HSLAKWKRQT",
)
DNA = ("ACGTTGCAAC", "GGCATTACGT", "TTGACCATGA", "CCGATAGGCT", "ATATCGCGAT", "GCGCTTAAGC", "TACGGATCCA", "CATGCATGAA")
SPLITS = ("train", "train", "train", "train", "valid", "valid", "test", "test")


def table(header: str, *rows: str) -> str:
    """A CSV file."""
    return "\n".join([header, *rows]) + "\n"


def labelled(labels: str, sequences: tuple[str, ...] = PROTEINS, splits: tuple[str, ...] = SPLITS) -> str:
    """A CSV file with sequence, label and split; labels: one word for each row, "-" for an empty one."""
    values = ["" if each == "-" else each for each in labels.split()]
    rows = zip(sequences, values, splits, strict=False)
    return table("sequence,label,split", *(",".join(row) for row in rows))


GOOD = labelled("no yes no yes no yes no yes")
NUMBERS = labelled("0.1 0.2 0.35 0.4 0.55 0.6 0.7 0.8")
RESIDUES = labelled(" ".join(["HHHHHCCCCC"] * 8))
FASTA = "".join(f">s{at}\n{sequence}\n" for at, sequence in enumerate(PROTEINS))
TRAIN = "--model scratch:tiny-esm2 --max-steps 1 --out out"


@dataclass(frozen=True)
class Case:
    """One wrong input.

    command: without `plft`.  says: the line behind "Error: ".  files: name -> content.  needs: what to put beside them:
    "run", a finished run of good.csv, or models of `MODELS`.  breaks: called with the folder, damages what is there.
    """

    name: str
    command: str
    says: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    breaks: Callable[[Path], object] | None = None


# --- things to break


def cut(name: str, keep: float = 0.5) -> Callable[[Path], object]:
    """Cut a file short."""

    def breaks(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return breaks


def remove(name: str) -> Callable[[Path], object]:
    """Delete a file."""
    return lambda folder: (folder / name).unlink()


def half_way(damaged: str) -> Callable[[Path], object]:
    """Take a finished run back to its first checkpoint, one file of which is cut short."""

    def breaks(folder: Path) -> None:
        shutil.rmtree(folder / "run/checkpoints/checkpoint-2")
        cut(f"run/checkpoints/checkpoint-1/{damaged}")(folder)

    return breaks


def edit(name: str, **changes: object) -> Callable[[Path], object]:
    """Change keys of a JSON file; a value of None removes the key."""

    def breaks(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: each for key, each in content.items() if each is not None}))

    return breaks


def point_at(model: str) -> Callable[[Path], object]:
    """Make the finished run one that was trained on a model folder whose weights have changed since."""
    base = {"name": model, "revision": None, "sha256": "0" * 64}
    return edit("run/model/plft.json", base=base, backbone=None)


def parquet(**columns: list[object]) -> bytes:
    """A Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def scribble(content: bytes, at: float = 0.5) -> bytes:
    """A file with 16 bytes in its middle overwritten."""
    start = int(len(content) * at)
    return content[:start] + b"\xff" * 16 + content[start + 16 :]


# --- model folders


def saved(folder: Path, family: str = "esm2") -> Path:
    """A tiny model as a transformers folder."""
    return tiny.save(tiny.checkpoint(family), folder)


def pickled(folder: Path) -> Path:
    """A checkpoint whose weights are a pickle."""
    saved(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def with_code(folder: Path) -> Path:
    """A model that brings Python code along."""
    saved(folder)
    edit("config.json", auto_map={"AutoModel": "modeling.Model"})(folder)
    (folder / "modeling.py").write_text("raise SystemExit('this code must never run')\n")
    return folder


def only_an_adapter(folder: Path) -> Path:
    """What peft saves."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def without(*names: str) -> Callable[[Path], Path]:
    """A model with files missing."""

    def make(folder: Path) -> Path:
        saved(folder)
        for name in names:
            (folder / name).unlink(missing_ok=True)
        return folder

    return make


MODELS: dict[str, Callable[[Path], Path]] = {
    "model": saved,
    "protbert": lambda folder: saved(folder, "protbert"),
    "pickled": pickled,
    "with_code": with_code,
    "only_an_adapter": only_an_adapter,
    "no_config": without("config.json"),
    "no_tokenizer": without("vocab.txt", "tokenizer.json"),
}
