"""Wrong inputs, one row each: the files, the command, and the one line that it must answer.

In `says`, "..." stands for any text. Every case starts in a folder that holds good.csv.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tiny

PROTEINS = ("MKTAYIAKQR", "QISFVKSHFS", "RQLEERLGLI", "EVQAPILSRV", "GDGTQDNLSG", "AEKAVQVKVK", "ALPDAQFEVV", "HSLAKWKRQT")
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


# --- the table

FORMATS = (
    Case("the file does not exist", "check god.csv", "?"),
    Case("a folder without a train file", "check data", "?", {"data/other.csv": GOOD}),
    Case("two files for one split", "check data", "?", {"data/train.csv": GOOD, "data/dev.csv": GOOD, "data/val.csv": GOOD}),
    Case("an ending that nobody knows", "check book.xlsx", "?", {"book.xlsx": b"PK\x03\x04"}),
    Case("an empty file", f"train empty.csv {TRAIN}", "?", {"empty.csv": ""}),
    Case("nothing but a header", f"train header.csv {TRAIN}", "?", {"header.csv": "sequence,label\n"}),
    Case("a row with too many fields", "check wide.csv", "?", {"wide.csv": table("sequence,label", "MKT,1", "MKV,1,2")}),
    Case("a row with too few fields", f"train short.csv {TRAIN}", "?", {"short.csv": table("sequence,label", "MKT")}),
    Case("a quote that never closes", "check quote.csv", "?", {"quote.csv": 'sequence,label\n"MKT,1\nMKV,0\n'}),
    Case("semicolons in a .csv", "check semi.csv", "?", {"semi.csv": "sequence;label\nMKT;1\n"}),
    Case("commas in a .tsv", "check commas.tsv", "?", {"commas.tsv": GOOD}),
    Case("a column twice", "check twice.csv", "?", {"twice.csv": table("sequence,label,label", "MKT,1,2")}),
    Case("UTF-16", "check wide.csv", "?", {"wide.csv": GOOD.encode("utf-16")}),
    Case("Latin-1", "check latin.csv", "?", {"latin.csv": table("sequence,label", "MKT,é").encode("latin-1")}),
    Case("a NUL byte", "check nul.csv", "?", {"nul.csv": "sequence,label\nMK\0T,1\n"}),
    Case("a gzip file cut short", "check cut.csv.gz", "?", {"cut.csv.gz": gzip.compress(GOOD.encode())[:-30]}),
    Case("a gzip file with a damaged middle", "check bad.csv.gz", "?", {"bad.csv.gz": scribble(gzip.compress(GOOD.encode()))}),
    Case(".gz that is not compressed", "check plain.csv.gz", "?", {"plain.csv.gz": GOOD}),
    Case("broken JSON", "check rows.jsonl", "?", {"rows.jsonl": '{"sequence": "MKT", "label": 1}\n{"sequence": "MKV"\n'}),
    Case("a JSON array", "check rows.json", "?", {"rows.json": '[{"sequence": "MKT"}]'}),
    Case("JSON lines that are no objects", "check rows.jsonl", "?", {"rows.jsonl": '"MKT"\n'}),
    Case("text called .parquet", "check rows.parquet", "?", {"rows.parquet": GOOD}),
    Case("Parquet cut short", "check rows.parquet", "?", {"rows.parquet": parquet(sequence=["MKT"], label=["a"])[:-20]}),
    Case("FASTA without >", "check seqs.fasta", "?", {"seqs.fasta": "MKTAYIAK\n"}),
    Case("a FASTA entry without a sequence", "check seqs.fasta", "?", {"seqs.fasta": ">a LABEL=1\nMKT\n>b LABEL=0\n"}),
    Case("a FASTA without labels", f"train seqs.fasta {TRAIN}", "?", {"seqs.fasta": FASTA}),
    Case("an empty sequence", f"train gap.csv {TRAIN}", "?", {"gap.csv": table("sequence,label", "MKT,1", ",0")}),
    Case("numbers where sequences should be", f"train good.csv --sequence-column n {TRAIN}", "?",
         {"good.csv": table("n,sequence,label", "12,MKT,1", "13,MKV,0")}),
    Case("the validation file does not exist", f"train good.csv --valid goodvalid.csv {TRAIN}", "?"),
)

COLUMNS = (
    Case("no sequence column", "check other.csv", "?", {"other.csv": table("sequnce,label", "MKT,1")}),
    Case("no label column", f"train other.csv {TRAIN}", "?", {"other.csv": table("sequence,lable", "MKT,1")}),
    Case("a label column that is not there", f"train good.csv --label-column labels {TRAIN}", "?"),
    Case("a split column that is not there", f"train good.csv --split-column set {TRAIN}", "?"),
    Case("a column in two spellings", "check other.csv", "?", {"other.csv": table("Sequence,SEQUENCE,label", "MKT,MKT,1")}),
    Case("an extra column that is not there", f"train good.csv --set data.extra_columns=[charge] {TRAIN}", "?"),
    Case("a weight that is not a number", f"train w.csv {TRAIN}", "?", {"w.csv": table("sequence,label,weight", "MKT,1,heavy")}),
    Case("a negative weight", f"train w.csv {TRAIN}", "?", {"w.csv": table("sequence,label,weight", "MKT,1,-2")}),
    Case("weights that are all 0", f"train w.csv {TRAIN}", "?",
         {"w.csv": table("sequence,label,weight,split", *(f"{s},{at % 2},0,{p}" for at, (s, p) in enumerate(zip(PROTEINS, SPLITS, strict=True))))}),
    Case("a mask of letters", f"train m.csv {TRAIN}", "?", {"m.csv": table("sequence,label,mask", "MKT,HHC,yyn")}),
)

LABELS = (
    Case("a residue label of the wrong length", f"train r.csv --task token_classification {TRAIN}", "?",
         {"r.csv": labelled("HHHHHCCCCC HHHH " + "HHHHHCCCCC " * 6)}),
    Case("a mask of the wrong length", f"train m.csv --task token_classification {TRAIN}", "?",
         {"m.csv": table("sequence,label,mask", "MKT,HHC,11", "MKV,HCC,111", "AKV,HCC,111")}),
    Case("a class that only test holds", f"train good.csv {TRAIN}", "?", {"good.csv": labelled("no yes no yes no yes no maybe")}),
    Case("text in a regression", f"train n.csv --task seq_regression {TRAIN}", "?", {"n.csv": labelled("0.1 0.2 high 0.4 0.5 0.6 0.7 0.8")}),
    Case("text in the test part of a regression", f"train n.csv --task seq_regression {TRAIN}", "?", {"n.csv": labelled("0.1 0.2 0.3 0.4 0.5 0.6 0.7 low")}),
    Case("infinity in a regression", f"train n.csv --task seq_regression {TRAIN}", "?", {"n.csv": labelled("0.1 0.2 inf 0.4 0.5 0.6 0.7 0.8")}),
    Case("one class only", f"train one.csv {TRAIN}", "?", {"one.csv": labelled("yes " * 8)}),
    Case("one class of residues only", f"train one.csv --task token_classification {TRAIN}", "?", {"one.csv": labelled("HHHHHHHHHH " * 8)}),
    Case("no label at all", f"train none.csv {TRAIN}", "?", {"none.csv": labelled("- " * 8)}),
    Case("no label in train", f"train none.csv --task seq_classification {TRAIN}", "?", {"none.csv": labelled("- - - - no yes no yes")}),
    Case("no label to measure with", f"train none.csv --task seq_classification {TRAIN}", "?", {"none.csv": labelled("no yes no yes - - - -")}),
    Case("the sentinel is every label", f"train n.csv --missing 999 --task seq_regression {TRAIN}", "?", {"n.csv": labelled("999 999 999 999 0.5 0.6 0.7 0.8")}),
    Case("every residue masked", f"train m.csv --task token_classification {TRAIN}", "?",
         {"m.csv": table("sequence,label,mask", *(f"{s},HHHHHCCCCC,0000000000" for s in PROTEINS))}),
    Case("lists where one class is expected", f"train l.jsonl --task seq_classification {TRAIN}", "?",
         {"l.jsonl": "".join(json.dumps({"sequence": s, "label": ["a", "b"]}) + "\n" for s in PROTEINS)}),
    Case("objects as labels", f"train l.jsonl {TRAIN}", "?", {"l.jsonl": '{"sequence": "MKT", "label": {"a": 1}}\n'}),
    Case("text in one of several label columns", f"train two.csv --label-column a --label-column b {TRAIN}", "?",
         {"two.csv": table("sequence,a,b", "MKT,1,2.5", "MKV,2,high")}),
    Case("several label columns for classes", f"train two.csv --label-column a --label-column b --task seq_classification {TRAIN}", "?",
         {"two.csv": table("sequence,a,b", "MKT,1,2.5", "MKV,2,3")}),
    Case("one of several label columns empty", f"train two.csv --label-column a --label-column b {TRAIN}", "?",
         {"two.csv": table("sequence,a,b", *(f"{s},{at}.5," for at, s in enumerate(PROTEINS)))}),
    Case("residue labels for a task of sequences", f"train r.csv --task seq_regression {TRAIN}", "?", {"r.csv": RESIDUES}),
)

SPLITTING = (
    Case("no train split", f"train t.csv {TRAIN}", "?", {"t.csv": labelled("no yes no yes", splits=("test",) * 4)}),
    Case("some records without a split", f"train t.csv {TRAIN}", "?", {"t.csv": labelled("no yes no yes", splits=("train", "train", "", "test"))}),
    Case("a split column of something else", f"train t.csv {TRAIN}", "?",
         {"t.csv": table("sequence,label,split", *(f"MKT{'A' * at},{at % 2},group{at}" for at in range(30)))}),
    Case("two sequences cannot make three parts", f"train t.csv {TRAIN}", "?", {"t.csv": table("sequence,label", "MKT,no", "MKV,yes")}),
    Case("the same sequence over and over", f"train t.csv {TRAIN}", "?", {"t.csv": table("sequence,label", *(["MKT,no", "MKT,yes"] * 5))}),
    Case("groups without a column", "split good.csv --by group -o out.csv", "?"),
    Case("groups from a column that is not there", "split good.csv --by group --group family -o out.csv", "?"),
    Case("a way to split that there is not", "split good.csv --by stratifed -o out.csv", "?"),
    Case("shares that leave nothing", "split good.csv --valid 0.6 --test 0.5 -o out.csv", "?"),
    Case("a share below 0", "split good.csv --valid -0.1 -o out.csv", "?"),
    Case("a folder to split", "split data -o out.csv", "?", {"data/train.csv": GOOD}),
    Case("a table format that there is not", "split good.csv -o out.txt", "?"),
)

LETTERS = (
    Case("letters that are refused", f"train j.csv --unknown-letters error {TRAIN}", "?", {"j.csv": GOOD.replace("MKTAYIAKQR", "MKTAJIAKQR")}),
    Case("a policy for letters that there is not", f"train good.csv --unknown-letters eror {TRAIN}", "?"),
    Case("every sequence dropped", f"train j.csv --unknown-letters drop {TRAIN}", "?", {"j.csv": labelled("no yes no yes no yes", tuple(f"{s}J" for s in PROTEINS))}),
    Case("DNA for a protein model", f"train dna.csv {TRAIN}", "?", {"dna.csv": labelled("no yes no yes no yes no yes", DNA)}),
    Case("protein for a DNA model", "train good.csv --model scratch:tiny-dnabert --max-steps 1 --out out", "?"),
)

CONFIGS = (
    Case("YAML that does not parse", f"train --config c.yaml {TRAIN}", "?", {"c.yaml": "data:\n  file: [good.csv\ntask: auto\n"}),
    Case("YAML that is a list", f"train --config c.yaml {TRAIN}", "?", {"c.yaml": "- good.csv\n"}),
    Case("an empty configuration", f"train --config c.yaml {TRAIN}", "?", {"c.yaml": ""}),
    Case("a configuration that is not text", f"train --config c.yaml {TRAIN}", "?", {"c.yaml": b"\xff\xfe\x00\x01"}),
    Case("a configuration that does not exist", f"train --config c.yaml {TRAIN}", "?"),
    Case("a configuration that is a folder", f"train --config data {TRAIN}", "?", {"data/train.csv": GOOD}),
    Case("an unknown key", f"train --config c.yaml {TRAIN}", "?", {"c.yaml": "data: {file: good.csv}\ntraining: {learning_rte: 0.1}\n"}),
    Case("an unknown section", f"train --config c.yaml {TRAIN}", "?", {"c.yaml": "data: {file: good.csv}\ntrainig: {epochs: 1}\n"}),
    Case("a section that is a number", f"train --config c.yaml {TRAIN}", "?", {"c.yaml": "data: {file: good.csv}\ntraining: 3\n"}),
    Case("a data section that is text", f"train --config c.yaml {TRAIN}", "?", {"c.yaml": "data: good.csv\n"}),
    Case("a value of the wrong type", f"train good.csv --set training.epochs=many {TRAIN}", "?"),
    Case("a value out of range", f"train good.csv --set training.warmup_share=1.5 {TRAIN}", "?"),
    Case("a negative number of epochs", f"train good.csv --epochs -1 {TRAIN}", "?"),
    Case("a learning rate that is not a number", f"train good.csv --set training.learning_rate=.nan {TRAIN}", "?"),
    Case("--set without a value", f"train good.csv --set training.epochs {TRAIN}", "?"),
    Case("--set with broken YAML", f"train good.csv --set 'training.epochs=[1' {TRAIN}", "?"),
    Case("--set in a section that there is not", f"train good.csv --set trainig.epochs=3 {TRAIN}", "?"),
    Case("--set inside something that is no section", f"train good.csv --set task.name=auto {TRAIN}", "?"),
    Case("--set of an unknown key", f"train good.csv --set training.epoch=3 {TRAIN}", "?"),
    Case("--set with three levels", f"train good.csv --set training.epochs.first=3 {TRAIN}", "?"),
    Case("nothing to train on", f"train {TRAIN}", "?"),
    Case("an unknown task", f"train good.csv --task classification {TRAIN}", "?"),
    Case("an unknown task for check", "check good.csv --task seq_clasification", "?"),
    Case("fp16 without a GPU", f"train good.csv --set training.precision=fp16 {TRAIN}", "?"),
    Case("fp16 for T5", "train good.csv --set training.precision=fp16 --model scratch:tiny-prott5 --max-steps 1 --out out", "?"),
    Case("more residues than the model takes", "train good.csv --set data.max_residues=100000 --model scratch:tiny-protbert --max-steps 1 --out out", "?"),
    Case("class weights for a regression", f"train n.csv --task seq_regression --set training.class_weights=balanced {TRAIN}", "?", {"n.csv": NUMBERS}),
    Case("a weight for a class that there is not", f"train good.csv --set 'training.class_weights={{yse: 2}}' {TRAIN}", "?"),
    Case("every class weight 0", f"train good.csv --set 'training.class_weights={{yes: 0, no: 0}}' {TRAIN}", "?"),
    Case("a class weight below 0", f"train good.csv --set 'training.class_weights={{yes: -2}}' {TRAIN}", "?"),
    Case("a tracker that there is not", f"train good.csv --set training.report_to=[nosuch] {TRAIN}", "?"),
)

NAMES = (
    Case("an unknown head", f"train good.csv --head mpl {TRAIN}", "?"),
    Case("an unknown pooling", f"train good.csv --pooling sum {TRAIN}", "?"),
    Case("cls pooling for T5", "train good.csv --pooling cls --model scratch:tiny-prott5 --max-steps 1 --out out", "?"),
    Case("a pooling head for residues", f"train r.csv --head light_attention --task token_classification {TRAIN}", "?", {"r.csv": RESIDUES}),
    Case("an unknown metric", f"train good.csv --set training.metric=acuracy {TRAIN}", "?"),
    Case("a metric of another task", f"train good.csv --set training.metric=spearman {TRAIN}", "?"),
    Case("an unknown tuning method", f"train good.csv --tune lroa {TRAIN}", "?"),
    Case("no blocks to tune", f"train good.csv --tune last-0 {TRAIN}", "?"),
    Case("more blocks than the model has", f"train good.csv --tune last-99 {TRAIN}", "?"),
    Case("adapters in more blocks than the model has", f"train good.csv --tune lora --set tuning.blocks=last-99 {TRAIN}", "?"),
    Case("blocks in a form of their own", f"train good.csv --tune lora --set tuning.blocks=2 {TRAIN}", "?"),
    Case("targets that match nothing", f"train good.csv --tune lora --set tuning.targets=[q_proj] {TRAIN}", "?"),
    Case("an unknown scratch model", "train good.csv --model scratch:esm2-8n --out out", "?"),
    Case("a built-in model that is not shipped", "train good.csv --model builtin:rna --out out", "?"),
    Case("a short name with a slip", "train good.csv --model esm-8m --out out", "?"),
    Case("a scratch name without scratch:", "train good.csv --model tiny-esm2 --out out", "?"),
    Case("a hub id without network", "train good.csv --model facebook/esm2_t6_8M_UR50D --out out", "?"),
    Case("a hub id that cannot be one", "train good.csv --model 'facebook/esm 2' --out out", "?"),
    Case("two revisions", "train good.csv --model facebook/esm2@main --set model.revision=v2 --out out", "?"),
    Case("a model folder that does not exist", "train good.csv --model ./model --out out", "?"),
    Case("a file as the model", "train good.csv --model good.csv --out out", "?"),
    Case("an empty model name", "train good.csv --model '' --out out", "?"),
    Case("a model folder without config.json", "train good.csv --model no_config --out out", "?", needs=("no_config",)),
    Case("a model folder without a tokenizer", "train good.csv --model no_tokenizer --out out", "?", needs=("no_tokenizer",)),
    Case("a model that is a pickle", "train good.csv --model pickled --out out", "?", needs=("pickled",)),
    Case("a model that brings code", "train good.csv --model with_code --out out", "?", needs=("with_code",)),
    Case("an adapter as the model", "train good.csv --model only_an_adapter --out out", "?", needs=("only_an_adapter",)),
    Case("a broken config.json", "train good.csv --model model --out out", "?", needs=("model",), breaks=cut("model/config.json")),
    Case("a config.json of an unknown kind", "train good.csv --model model --out out", "?", needs=("model",), breaks=edit("model/config.json", model_type="esm9")),
    Case("a config.json without a kind", "train good.csv --model model --out out", "?", needs=("model",), breaks=edit("model/config.json", model_type=None)),
    Case("a config.json with sizes that do not fit", "train good.csv --model model --max-steps 1 --out out", "?", needs=("model",), breaks=edit("model/config.json", num_attention_heads=5)),
    Case("a config.json with a wrong size", "train good.csv --model model --max-steps 1 --out out", "?", needs=("model",), breaks=edit("model/config.json", hidden_size="wide")),
    Case("weights of another size", "train good.csv --model model --max-steps 1 --out out", "?", needs=("model",), breaks=edit("model/config.json", num_hidden_layers=5)),
    Case("weights of another width", "train good.csv --model model --max-steps 1 --out out", "?", needs=("model",), breaks=edit("model/config.json", intermediate_size=48)),
    Case("base weights cut short", "train good.csv --model model --max-steps 1 --out out", "?", needs=("model",), breaks=cut("model/model.safetensors")),
    Case("a damaged tokenizer", "train good.csv --model protbert --out out", "?", needs=("protbert",), breaks=cut("protbert/tokenizer.json")),
    Case("embeddings of an unknown model", "embed esm2-9m good.csv -o e.csv", "?"),
)

FOLDERS = (
    Case("a run is there already", "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out run", "?", needs=("run",)),
    Case("something else is there", "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out data", "?", {"data/notes.txt": "mine"}),
    Case("--overwrite of something else", "train good.csv --model scratch:tiny-esm2 --out data --overwrite", "?", {"data/notes.txt": "mine"}),
    Case("--overwrite with bad data keeps the run", "train god.csv --model scratch:tiny-esm2 --max-steps 1 --out run --overwrite", "?", needs=("run",)),
    Case("--overwrite with a bad model keeps the run", "train good.csv --tune last-99 --model scratch:tiny-esm2 --out run --overwrite", "?", needs=("run",)),
    Case("--out is a file", "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out good.csv", "?"),
    Case("--out inside a file", "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out good.csv/run", "?"),
    Case("nothing to resume", "train good.csv --model scratch:tiny-esm2 --max-steps 1 --out out --resume", "?"),
    Case("resuming with a damaged run.yaml", "train --out run --resume", "?", {}, ("run",), cut("run/run.yaml", 0.3)),
    Case("resuming from a checkpoint cut short", "train --out run --resume", "?", {}, ("run",), half_way("model.safetensors")),
    Case("resuming from a damaged optimiser", "train --out run --resume", "?", {}, ("run",), half_way("optimizer.pt")),
    Case("--resume and --overwrite", "train --out run --resume --overwrite", "?", {}, ("run",)),
    Case("a folder that is not a run", "predict data good.csv -o p.csv", "?", {"data/notes.txt": "mine"}),
    Case("a run that does not exist", "predict ./run9 good.csv -o p.csv", "?"),
    Case("a run without a model", "predict run good.csv -o p.csv", "?", {"run/run.yaml": "task: auto\n"}),
    Case("trained weights missing", "predict run good.csv -o p.csv", "?", {}, ("run",), remove("run/model/trained.safetensors")),
    Case("trained weights cut short", "predict run good.csv -o p.csv", "?", {}, ("run",), cut("run/model/trained.safetensors")),
    Case("the adapter missing", "predict run good.csv -o p.csv", "?", {}, ("run",), remove("run/model/adapter/adapter_model.safetensors")),
    Case("the backbone's weights cut short", "predict run good.csv -o p.csv", "?", {}, ("run",), cut("run/model/backbone/model.safetensors")),
    Case("the backbone's configuration missing", "predict run good.csv -o p.csv", "?", {}, ("run",), remove("run/model/backbone/config.json")),
    Case("plft.json cut short", "predict run good.csv -o p.csv", "?", {}, ("run",), cut("run/model/plft.json")),
    Case("plft.json that is a list", "predict run good.csv -o p.csv", "?", {}, ("run",), lambda folder: (folder / "run/model/plft.json").write_text("[]")),
    Case("plft.json without labels", "predict run good.csv -o p.csv", "?", {}, ("run",), edit("run/model/plft.json", labels=None)),
    Case("plft.json with empty labels", "predict run good.csv -o p.csv", "?", {}, ("run",), edit("run/model/plft.json", labels={})),
    Case("plft.json with an unknown tuning method", "predict run good.csv -o p.csv", "?", {}, ("run",), edit("run/model/plft.json", tuning={"method": "magic"})),
    Case("plft.json with an unknown setting", "predict run good.csv -o p.csv", "?", {}, ("run",), edit("run/model/plft.json", tuning={"magic": 1})),
    Case("plft.json with other labels than the weights", "predict run good.csv -o p.csv", "?", {}, ("run",),
         edit("run/model/plft.json", labels={"task": "seq_classification", "classes": ["a", "b", "c"], "columns": ["label"], "mean": [], "scale": [], "missing": None})),
    Case("plft.json of a later version", "predict run good.csv -o p.csv", "?", {}, ("run",), edit("run/model/plft.json", format=99)),
    Case("a head that came from Python", "predict run good.csv -o p.csv", "?", {}, ("run",), edit("run/model/plft.json", custom_head="GraphHead")),
    Case("the base model has changed", "predict run good.csv -o p.csv", "?", {}, ("run", "model"), point_at("model")),
    Case("the base model is gone", "predict run good.csv -o p.csv", "?", {}, ("run",), point_at("./gone")),
    Case("a model without a trained head", "predict model good.csv -o p.csv", "?", needs=("model",)),
    Case("a report from damaged metrics", "report run", "?", {}, ("run",), cut("run/metrics.json")),
    Case("a report from metrics that are a list", "report run", "?", {}, ("run",), lambda folder: (folder / "run/metrics.json").write_text("[1, 2]")),
    Case("a report from metrics without splits", "report run", "?", {}, ("run",), edit("run/metrics.json", splits=None)),
    Case("a report from splits that are a list", "report run", "?", {}, ("run",), edit("run/metrics.json", splits=["test"])),
    Case("a report from metrics with text for numbers", "report run", "?", {}, ("run",), edit("run/metrics.json", splits={"test": "good"})),
    Case("a report without metrics", "report run", "?", {}, ("run",), remove("run/metrics.json")),
    Case("a report from a damaged history", "report run", "?", {}, ("run",), cut("run/history.jsonl", 0.9)),
    Case("a report from a damaged environment", "report run", "?", {}, ("run",), cut("run/environment.json")),
    Case("a report of something else", "report data", "?", {"data/notes.txt": "mine"}),
    Case("an export over a folder", "export run -o data", "?", {"data/notes.txt": "mine"}, ("run",)),
    Case("an export of something else", "export data -o exported", "?", {"data/notes.txt": "mine"}),
    Case("an export of a damaged run", "export run -o exported", "?", {}, ("run",), cut("run/model/trained.safetensors")),
    Case("an export into a file", "export run -o good.csv/exported", "?", {}, ("run",)),
    Case("a demo over a run", "demo --out run", "?", needs=("run",)),
)

USING = (
    Case("predicting for a file that does not exist", "predict run god.csv -o p.csv", "?", {"p.csv": "precious\n"}, ("run",)),
    Case("predicting for an empty FASTA", "predict run empty.fasta -o p.csv", "?", {"p.csv": "precious\n", "empty.fasta": ""}, ("run",)),
    Case("predicting for a FASTA with an empty entry", "predict run half.fasta -o p.csv", "?", {"p.csv": "precious\n", "half.fasta": FASTA + ">last\n"}, ("run",)),
    Case("predicting for a damaged gzip file", "predict run cut.fasta.gz -o p.parquet", "?", {"p.parquet": "precious\n", "cut.fasta.gz": gzip.compress(FASTA.encode())[:-12]}, ("run",)),
    Case("predicting into an unknown format", "predict run good.csv -o p.xlsx", "?", needs=("run",)),
    Case("predicting into a folder", "predict run good.csv -o data.csv", "?", {"data.csv/keep.txt": "mine"}, ("run",)),
    Case("predicting into a file's inside", "predict run good.csv -o good.csv/p.csv", "?", needs=("run",)),
    Case("predicting with a column that is not there", "predict run good.csv --sequence-column protein -o p.csv", "?", {"p.csv": "precious\n"}, ("run",)),
    Case("predicting for DNA with a protein model", "predict run dna.csv -o p.csv", "?", {"dna.csv": labelled("no yes no yes no yes no yes", DNA)}, ("run",)),
    Case("predicting over the input", "predict run good.csv -o good.csv", "?", needs=("run",)),
    Case("scoring a split that is not there", "evaluate run good.csv --split tset", "?", needs=("run",)),
    Case("scoring a file without labels", "evaluate run bare.csv", "?", {"bare.csv": table("sequence", *PROTEINS)}, ("run",)),
    Case("scoring a file with empty labels", "evaluate run bare.csv", "?", {"bare.csv": table("sequence,label", *(f"{s}," for s in PROTEINS))}, ("run",)),
    Case("scoring a class that the model does not know", "evaluate run more.csv", "?", {"more.csv": table("sequence,label", "MKT,maybe")}, ("run",)),
    Case("scoring DNA with a protein model", "evaluate run dna.csv", "?", {"dna.csv": labelled("no yes no yes no yes no yes", DNA)}, ("run",)),
    Case("the run's data are gone", "evaluate run", "?", {}, ("run",), lambda folder: (folder / "run/run.yaml").write_text((folder / "run/run.yaml").read_text().replace("good.csv", "gone.csv"))),
    Case("scoring a folder that is not a run", "evaluate data good.csv", "?", {"data/notes.txt": "mine"}),
)

ARGUMENTS = (
    Case("a command that there is not", "trian good.csv", "?"),
    Case("an option that there is not", "check good.csv --frob", "?"),
    Case("an argument is missing", "check", "?"),
    Case("one argument too many", "check good.csv more.csv", "?"),
    Case("an option without its value", "train good.csv --model", "?"),
    Case("text for a number", "train good.csv --epochs many", "?"),
)

CASES = (*FORMATS, *COLUMNS, *LABELS, *SPLITTING, *LETTERS, *CONFIGS, *NAMES, *FOLDERS, *USING, *ARGUMENTS)
