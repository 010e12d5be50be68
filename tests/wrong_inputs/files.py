"""Files that cannot be read, or lack a column."""

from __future__ import annotations

import gzip

from .case import FASTA, GOOD, PROTEINS, SPLITS, TRAIN, Case, parquet, scribble, table

FORMATS = (
    Case(
        "a FASTA label with a space",
        f"train t.fasta {TRAIN}",
        ">s1: the label 'LABEL=Cell membrane' holds a space. Use commas or another sign.",
        {"t.fasta": ">s1 LABEL=Cell membrane SPLIT=train\nMKTAYIAKQR\n"},
    ),
    Case("the file does not exist", "check god.csv", "No such file: god.csv. Did you mean 'good.csv'?"),
    Case(
        "a folder without a train file",
        "check data",
        "data: holds no train file (it holds other.csv). Name one file, or call one train.csv.",
        {"data/other.csv": GOOD},
    ),
    Case(
        "two files for one split",
        "check data",
        "data: both dev.csv and val.csv could be the valid split. Remove one.",
        {"data/train.csv": GOOD, "data/dev.csv": GOOD, "data/val.csv": GOOD},
    ),
    Case(
        "an ending that nobody knows",
        "check book.xlsx",
        (
            "book.xlsx: unknown kind of file. Known endings: .csv, .tsv, .jsonl, .json, .parquet, .fasta, .fa, "
            ".faa, .fna, .fas, all but .parquet also with .gz."
        ),
        {"book.xlsx": b"PK\x03\x04"},
    ),
    Case(
        "an empty file",
        f"train empty.csv {TRAIN}",
        "empty.csv: is empty. Give a file with at least one sequence.",
        {"empty.csv": ""},
    ),
    Case(
        "nothing but a header",
        f"train header.csv {TRAIN}",
        "header.csv: holds no sequences. Give a file with at least one sequence.",
        {"header.csv": "sequence,label\n"},
    ),
    Case(
        "a row with too many fields",
        "check wide.csv",
        "wide.csv, row 2: 3 fields where the header has 2. Put values that hold the separator in double quotes.",
        {"wide.csv": table("sequence,label", "MKT,1", "MKV,1,2")},
    ),
    Case(
        "a row with too few fields",
        f"train short.csv {TRAIN}",
        "short.csv, row 1: 1 fields where the header has 2. Add the missing ones.",
        {"short.csv": table("sequence,label", "MKT")},
    ),
    Case(
        "a quote that never closes",
        "check quote.csv",
        "quote.csv, line 3: unexpected end of data. Check the quotes there.",
        {"quote.csv": 'sequence,label\n"MKT,1\nMKV,0\n'},
    ),
    Case(
        "semicolons in a .csv",
        "check semi.csv",
        "semi.csv: columns seem to be separated by a semicolon. Use commas in .csv files and tabs in .tsv files.",
        {"semi.csv": "sequence;label\nMKT;1\n"},
    ),
    Case(
        "commas in a .tsv",
        "check commas.tsv",
        "commas.tsv: columns seem to be separated by a comma. Use commas in .csv files and tabs in .tsv files.",
        {"commas.tsv": GOOD},
    ),
    Case(
        "a column twice",
        "check twice.csv",
        "twice.csv: several columns are named 'label'. Give each its own name.",
        {"twice.csv": table("sequence,label,label", "MKT,1,2")},
    ),
    Case(
        "UTF-16",
        "check wide.csv",
        "wide.csv: is not UTF-8 text (...). Save it as UTF-8 text.",
        {"wide.csv": GOOD.encode("utf-16")},
    ),
    Case(
        "Latin-1",
        "check latin.csv",
        "latin.csv: is not UTF-8 text (...). Save it as UTF-8 text.",
        {"latin.csv": table("sequence,label", "MKT,é").encode("latin-1")},
    ),
    Case(
        "a NUL byte",
        "check nul.csv",
        "nul.csv: holds a NUL byte, so it is not UTF-8 text. Save it as UTF-8 text.",
        {"nul.csv": "sequence,label\nMK\0T,1\n"},
    ),
    Case(
        "a gzip file cut short",
        "check cut.csv.gz",
        "cut.csv.gz: is damaged or cut short (...). Fetch it again.",
        {"cut.csv.gz": gzip.compress(GOOD.encode())[:-30]},
    ),
    Case(
        "a gzip file with a damaged middle",
        "check bad.csv.gz",
        "bad.csv.gz: is damaged or cut short (...). Fetch it again.",
        {"bad.csv.gz": scribble(gzip.compress(GOOD.encode()))},
    ),
    Case(
        ".gz that is not compressed",
        "check plain.csv.gz",
        "plain.csv.gz: ends in .gz but is not compressed. Remove that ending, or compress it.",
        {"plain.csv.gz": GOOD},
    ),
    Case(
        "broken JSON",
        "check rows.jsonl",
        "rows.jsonl, row 2: broken JSON (...). Correct that line.",
        {"rows.jsonl": '{"sequence": "MKT", "label": 1}\n{"sequence": "MKV"\n'},
    ),
    Case(
        "a JSON array",
        "check rows.json",
        "rows.json: is one JSON array. Write one JSON object per line instead.",
        {"rows.json": '[{"sequence": "MKT"}]'},
    ),
    Case(
        "JSON lines that are no objects",
        "check rows.jsonl",
        "rows.jsonl, row 1: is not a JSON object. Write one object with its keys per line.",
        {"rows.jsonl": '"MKT"\n'},
    ),
    Case(
        "text called .parquet",
        "check rows.parquet",
        "rows.parquet: cannot be read as Parquet (...). Write it anew.",
        {"rows.parquet": GOOD},
    ),
    Case(
        "Parquet cut short",
        "check rows.parquet",
        "rows.parquet: cannot be read as Parquet (...). Write it anew.",
        {"rows.parquet": parquet(sequence=["MKT"], label=["a"])[:-20]},
    ),
    Case(
        "FASTA without >",
        "check seqs.fasta",
        "seqs.fasta: starts with 'MKTAYIAK', but FASTA starts with '>'. Check the format.",
        {"seqs.fasta": "MKTAYIAK\n"},
    ),
    Case(
        "a FASTA entry without a sequence",
        "check seqs.fasta",
        "seqs.fasta, row 2 (id b): has no sequence. Fill it in, or remove the row.",
        {"seqs.fasta": ">a LABEL=1\nMKT\n>b LABEL=0\n"},
    ),
    Case(
        "a FASTA without labels",
        f"train seqs.fasta {TRAIN}",
        "seqs.fasta: no column 'label'. Columns: id, sequence. Rename one, or name the column to use.",
        {"seqs.fasta": FASTA},
    ),
    Case(
        "an empty sequence",
        f"train gap.csv {TRAIN}",
        "gap.csv, row 2: has no sequence. Fill it in, or remove the row.",
        {"gap.csv": table("sequence,label", "MKT,1", ",0")},
    ),
    Case(
        "numbers where sequences should be",
        f"train good.csv --sequence-column n {TRAIN}",
        "good.csv, row 1: '12' is not a sequence. Check the sequence column.",
        {"good.csv": table("n,sequence,label", "12,MKT,1", "13,MKV,0")},
    ),
    Case(
        "the validation file does not exist",
        f"train good.csv --valid goodvalid.csv {TRAIN}",
        "No such file: goodvalid.csv. Did you mean 'good.csv'?",
    ),
)

COLUMNS = (
    Case(
        "no sequence column",
        "check other.csv",
        "other.csv: no column 'sequence'. Columns: sequnce, label. Did you mean 'sequnce'?",
        {"other.csv": table("sequnce,label", "MKT,1")},
    ),
    Case(
        "no label column",
        f"train other.csv {TRAIN}",
        "other.csv: no column 'label'. Columns: sequence, lable. Did you mean 'lable'?",
        {"other.csv": table("sequence,lable", "MKT,1")},
    ),
    Case(
        "a label column that is not there",
        f"train good.csv --label-column labels {TRAIN}",
        "good.csv: no column 'labels'. Columns: sequence, label, split. Did you mean 'label'?",
    ),
    Case(
        "a split column that is not there",
        f"train good.csv --split-column set {TRAIN}",
        "good.csv: no column 'set'. Columns: sequence, label, split. Rename one, or name the column to use.",
    ),
    Case(
        "a column in two spellings",
        "check other.csv",
        "other.csv: columns 'Sequence'; 'SEQUENCE' could all be 'sequence'. Rename them.",
        {"other.csv": table("Sequence,SEQUENCE,label", "MKT,MKT,1")},
    ),
    Case(
        "an extra column that is not there",
        f"train good.csv --set data.extra_columns=[charge] {TRAIN}",
        "good.csv: no column 'charge'. Columns: sequence, label, split. Rename one, or name the column to use.",
    ),
    Case(
        "a weight that is not a number",
        f"train w.csv {TRAIN}",
        "w.csv, row 1: the weight 'heavy' is not a number of at least 0. Correct it.",
        {"w.csv": table("sequence,label,weight", "MKT,1,heavy")},
    ),
    Case(
        "a negative weight",
        f"train w.csv {TRAIN}",
        "w.csv, row 1: the weight '-2' is not a number of at least 0. Correct it.",
        {"w.csv": table("sequence,label,weight", "MKT,1,-2")},
    ),
    Case(
        "weights that are all 0",
        f"train w.csv {TRAIN}",
        "No labelled train record has a weight above 0. Check the weight column.",
        {
            "w.csv": table(
                "sequence,label,weight,split",
                *(f"{s},{at % 2},0,{p}" for at, (s, p) in enumerate(zip(PROTEINS, SPLITS, strict=True))),
            )
        },
    ),
    Case(
        "a mask of letters",
        f"train m.csv {TRAIN}",
        "m.csv, row 1: the mask 'yyn' may hold only 0 and 1, one for each residue.",
        {"m.csv": table("sequence,label,mask", "MKT,HHC,yyn")},
    ),
)
