"""Predicting and scoring what cannot be answered."""

from __future__ import annotations

import gzip

from .case import DNA, FASTA, PROTEINS, Case, labelled, table

USING = (
    Case(
        "scoring other columns of the run's own file",
        "evaluate run --label-column split",
        "--sequence-column and --label-column are for another file. Name it, or leave them out.",
        needs=("run",),
    ),
    Case(
        "predicting with an id column that is not there",
        "predict run good.csv --id-column acession -o p.csv",
        "good.csv: no column 'acession'. Columns: sequence, label, split. Rename one, or name the column to use.",
        {"p.csv": "precious\n"},
        ("run",),
    ),
    Case(
        "checking nothing",
        "check ''",
        "File must not be empty.",
    ),
    Case(
        "relatives' identity without the search",
        "check good.csv --identity 0.5",
        "--identity and --coverage have no effect without --leakage. Add it, or leave them out.",
    ),
    Case(
        "groups without the split that keeps them",
        "split good.csv --group label -o out.csv",
        "--group label has no effect with --by stratified. Ask for --by group, or leave it out.",
    ),
    Case(
        "an identity for a random split",
        "split good.csv --by random --identity 0.5 -o out.csv",
        "--identity and --coverage have no effect with --by random. Ask for --by homology.",
    ),
    Case(
        "splitting lists into a CSV",
        "split t.jsonl -o out.csv",
        "t.jsonl: 'label' holds lists, which .csv cannot. Write .jsonl or .parquet.",
        {"t.jsonl": "".join(f'{{"sequence": "{each}", "label": ["a", "b"]}}\n' for each in PROTEINS)},
    ),
    Case(
        "splitting values of several kinds into Parquet",
        "split t.jsonl -o out.parquet",
        "A column holds values of several kinds (...). Write .csv or .jsonl.",
        {
            "t.jsonl": "".join(
                f'{{"sequence": "{each}", "label": "a", "note": {note}}}\n'
                for each, note in zip(PROTEINS, ("1", '"NA"') * 4, strict=True)
            )
        },
    ),
    Case(
        "predicting for a file that does not exist",
        "predict run god.csv -o p.csv",
        "No such file: god.csv. Did you mean 'good.csv'?",
        {"p.csv": "precious\n"},
        ("run",),
    ),
    Case(
        "predicting for an empty FASTA",
        "predict run empty.fasta -o p.csv",
        "empty.fasta: is empty. Give a file with at least one sequence.",
        {"p.csv": "precious\n", "empty.fasta": ""},
        ("run",),
    ),
    Case(
        "predicting for a FASTA with an empty entry",
        "predict run half.fasta -o p.csv",
        "half.fasta, row 9 (id last): has no sequence. Fill it in, or remove the row.",
        {"p.csv": "precious\n", "half.fasta": FASTA + ">last\n"},
        ("run",),
    ),
    Case(
        "predicting for a damaged gzip file",
        "predict run cut.fasta.gz -o p.parquet",
        "cut.fasta.gz: is damaged or cut short (...). Fetch it again.",
        {"p.parquet": "precious\n", "cut.fasta.gz": gzip.compress(FASTA.encode())[:-12]},
        ("run",),
    ),
    Case(
        "predicting into an unknown format",
        "predict run good.csv -o p.xlsx",
        "Unknown table format '.xlsx'. Known: .csv, .tsv, .jsonl, .parquet.",
        needs=("run",),
    ),
    Case(
        "predicting into a folder",
        "predict run good.csv -o data.csv",
        "data.csv is a folder. Name the file to write.",
        {"data.csv/keep.txt": "mine"},
        ("run",),
    ),
    Case(
        "predicting into a file's inside",
        "predict run good.csv -o good.csv/p.csv",
        "good.csv/p.csv cannot be written: File exists. Choose another place.",
        needs=("run",),
    ),
    Case(
        "predicting with a column that is not there",
        "predict run good.csv --sequence-column protein -o p.csv",
        "good.csv: no column 'protein'. Columns: sequence, label, split. Rename one, or name the column to use.",
        {"p.csv": "precious\n"},
        ("run",),
    ),
    Case(
        "predicting for DNA with a protein model",
        "predict run dna.csv -o p.csv",
        "The sequences look like dna, but this model reads protein. Change one of them.",
        {"dna.csv": labelled("no yes no yes no yes no yes", DNA)},
        ("run",),
    ),
    Case(
        "predicting over the input",
        "predict run good.csv -o good.csv",
        "good.csv is the input, which the predictions would replace. Choose another --out.",
        needs=("run",),
    ),
    Case(
        "scoring a split that is not there",
        "evaluate run good.csv --split tset",
        "Unknown split 'tset'. Known: train, valid, test. Did you mean 'test'?",
        needs=("run",),
    ),
    Case(
        "scoring a file without labels",
        "evaluate run bare.csv",
        "bare.csv: no column 'label'. Columns: sequence. Rename one, or name the column to use.",
        {"bare.csv": table("sequence", *PROTEINS)},
        ("run",),
    ),
    Case(
        "scoring a file with empty labels",
        "evaluate run bare.csv",
        (
            "There is nothing to score: all 8 labels are missing. Check the label column and the value that marks"
            " missing labels."
        ),
        {"bare.csv": table("sequence,label", *(f"{s}," for s in PROTEINS))},
        ("run",),
    ),
    Case(
        "scoring a class that the model does not know",
        "evaluate run more.csv",
        "more.csv, row 1: class 'maybe' does not occur in the train split. Known: no; yes. "
        "Training with data.unseen_classes=drop leaves it out.",
        {"more.csv": table("sequence,label", "MKT,maybe")},
        ("run",),
    ),
    Case(
        "scoring DNA with a protein model",
        "evaluate run dna.csv",
        "The sequences look like dna, but this model reads protein. Change one of them.",
        {"dna.csv": labelled("no yes no yes no yes no yes", DNA)},
        ("run",),
    ),
    Case(
        "the run's data are gone",
        "evaluate run",
        "No such file: .../gone.csv. Did you mean 'good.csv'?",
        {},
        ("run",),
        lambda folder: (folder / "run/run.yaml").write_text(
            (folder / "run/run.yaml").read_text().replace("good.csv", "gone.csv")
        ),
    ),
    Case(
        "scoring a folder that is not a run",
        "evaluate data good.csv",
        (
            "data is neither a run nor a model: it has no run.yaml, plft.json or config.json. Give the folder of "
            "plft train --out."
        ),
        {"data/notes.txt": "mine"},
    ),
)
