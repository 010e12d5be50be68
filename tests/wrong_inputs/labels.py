"""Labels, splits and letters that nothing can be learned from."""

from __future__ import annotations

import json

from .case import DNA, GOOD, PROTEINS, RESIDUES, TRAIN, Case, labelled, table

LABELS = (
    Case(
        "a residue label of the wrong length",
        f"train r.csv --task token_classification {TRAIN}",
        "r.csv, row 2: the label has 4 values but the sequence has 10 residues. Give one label value per residue.",
        {"r.csv": labelled("HHHHHCCCCC HHHH " + "HHHHHCCCCC " * 6)},
    ),
    Case(
        "a mask of the wrong length",
        f"train m.csv --task token_classification {TRAIN}",
        "m.csv, row 1: the mask has 2 values but the sequence has 3 residues. Give one mask value per residue.",
        {"m.csv": table("sequence,label,mask", "MKT,HHC,11", "MKV,HCC,111", "AKV,HCC,111")},
    ),
    Case(
        "a class that only test holds",
        f"train good.csv {TRAIN}",
        "good.csv, row 8: class 'maybe' does not occur in the train split. Known: no; yes. "
        "Training with data.unseen_classes=drop leaves it out.",
        {"good.csv": labelled("no yes no yes no yes no maybe")},
    ),
    Case(
        "text in a regression",
        f"train n.csv --task seq_regression {TRAIN}",
        (
            "A regression label must be a finite number, but n.csv, row 3: 'high'. Correct it, name the missing "
            "value, or choose a classification task."
        ),
        {"n.csv": labelled("0.1 0.2 high 0.4 0.5 0.6 0.7 0.8")},
    ),
    Case(
        "text in the test part of a regression",
        f"train n.csv --task seq_regression {TRAIN}",
        (
            "A regression label must be a finite number, but n.csv, row 8: 'low'. Correct it, name the missing "
            "value, or choose a classification task."
        ),
        {"n.csv": labelled("0.1 0.2 0.3 0.4 0.5 0.6 0.7 low")},
    ),
    Case(
        "infinity in a regression",
        f"train n.csv --task seq_regression {TRAIN}",
        (
            "A regression label must be a finite number, but n.csv, row 3: 'inf'. Correct it, name the missing "
            "value, or choose a classification task."
        ),
        {"n.csv": labelled("0.1 0.2 inf 0.4 0.5 0.6 0.7 0.8")},
    ),
    Case(
        "one class only",
        f"train one.csv {TRAIN}",
        (
            "All train labels are 'yes'; classification needs at least two classes. Check the label column, or "
            "add records of another class."
        ),
        {"one.csv": labelled("yes " * 8)},
    ),
    Case(
        "one class of residues only",
        f"train one.csv --task token_classification {TRAIN}",
        (
            "All train labels are 'H'; classification needs at least two classes. Check the label column, or add "
            "records of another class."
        ),
        {"one.csv": labelled("HHHHHHHHHH " * 8)},
    ),
    Case(
        "no label at all",
        f"train none.csv {TRAIN}",
        "No record has a label, so the task cannot be guessed. Name the label column.",
        {"none.csv": labelled("- " * 8)},
    ),
    Case(
        "no label in train",
        f"train none.csv --task seq_classification {TRAIN}",
        "No train record has a label. Check the label column and the missing value.",
        {"none.csv": labelled("- - - - no yes no yes")},
    ),
    Case(
        "no label to measure with",
        f"train none.csv --task seq_classification {TRAIN}",
        "No record of valid or test has a label, so nothing can be measured. Add some.",
        {"none.csv": labelled("no yes no yes - - - -")},
    ),
    Case(
        "the sentinel is every label",
        f"train n.csv --missing 999 --task seq_regression {TRAIN}",
        "No train record has a value for 'label'. Check the label column.",
        {"n.csv": labelled("999 999 999 999 0.5 0.6 0.7 0.8")},
    ),
    Case(
        "every residue masked",
        f"train m.csv --task token_classification {TRAIN}",
        "No train record has a label. Check the label column and the missing value.",
        {"m.csv": table("sequence,label,mask", *(f"{s},HHHHHCCCCC,0000000000" for s in PROTEINS))},
    ),
    Case(
        "lists where one class is expected",
        f"train l.jsonl --task seq_classification {TRAIN}",
        (
            "l.jsonl, row 1: the label is a list of 2 values where one value is expected. Choose a residue task "
            "or seq_multilabel."
        ),
        {"l.jsonl": "".join(json.dumps({"sequence": s, "label": ["a", "b"]}) + "\n" for s in PROTEINS)},
    ),
    Case(
        "objects as labels",
        f"train l.jsonl {TRAIN}",
        "l.jsonl, row 1: the label is neither text, a number nor a list. Check the label column.",
        {"l.jsonl": '{"sequence": "MKT", "label": {"a": 1}}\n'},
    ),
    Case(
        "text in one of several label columns",
        f"train two.csv --label-column a --label-column b {TRAIN}",
        "Several label columns must hold numbers, but 'high' is not one.",
        {"two.csv": table("sequence,a,b", "MKT,1,2.5", "MKV,2,high")},
    ),
    Case(
        "several label columns for classes",
        f"train two.csv --label-column a --label-column b --task seq_classification {TRAIN}",
        "Configuration: several label columns make a seq_regression or seq_multilabel, not a seq_classification.",
        {"two.csv": table("sequence,a,b", "MKT,1,2.5", "MKV,2,3")},
    ),
    Case(
        "one of several label columns empty",
        f"train two.csv --label-column a --label-column b {TRAIN}",
        "No train record has a value for 'b'. Check the label column.",
        {"two.csv": table("sequence,a,b", *(f"{s},{at}.5," for at, s in enumerate(PROTEINS)))},
    ),
    Case(
        "residue labels for a task of sequences",
        f"train r.csv --task seq_regression {TRAIN}",
        (
            "A regression label must be a finite number, but r.csv, row 1: 'HHHHHCCCCC'; r.csv, row 2: "
            "'HHHHHCCCCC'; r.csv, row 3: 'HHHHHCCCCC' (and 1 more). Correct it, name the missing value, or choose"
            " a classification task."
        ),
        {"r.csv": RESIDUES},
    ),
)

SPLITTING = (
    Case(
        "no train split",
        f"train t.csv {TRAIN}",
        "No record is in train; there are test 4. Call one split train.",
        {"t.csv": labelled("no yes no yes", splits=("test",) * 4)},
    ),
    Case(
        "some records without a split",
        f"train t.csv {TRAIN}",
        "1 records have no split: t.csv, row 3. Fill in the split column.",
        {"t.csv": labelled("no yes no yes", splits=("train", "train", "", "test"))},
    ),
    Case(
        "a split column of something else",
        f"train t.csv {TRAIN}",
        (
            "t.csv: 30 different splits ('group0'; 'group1'; 'group2' (and 27 more)); expected a few such as "
            "train, valid and test. Check the split column."
        ),
        {"t.csv": table("sequence,label,split", *(f"MKT{'A' * at},{at % 2},group{at}" for at in range(30)))},
    ),
    Case(
        "a split that is a path",
        f"train t.csv {TRAIN}",
        "t.csv: the split '../../test' cannot name the file of its predictions. Use letters, digits, - and _.",
        {"t.csv": labelled("no yes no yes", splits=("train", "train", "valid", "../../test"))},
    ),
    Case(
        "two sequences cannot make three parts",
        f"train t.csv {TRAIN}",
        "Cannot split 2 different sequence(s) into train, valid, test. Give more, or files for each part.",
        {"t.csv": table("sequence,label", "MKT,no", "MKV,yes")},
    ),
    Case(
        "the same sequence over and over",
        f"train t.csv {TRAIN}",
        "Cannot split 1 different sequence(s) into train, valid, test. Give more, or files for each part.",
        {"t.csv": table("sequence,label", *(["MKT,no", "MKT,yes"] * 5))},
    ),
    Case(
        "groups without a column",
        "split good.csv --by group -o out.csv",
        "Splitting by group needs the column that holds the groups. Name it.",
    ),
    Case(
        "groups from a column that is not there",
        "split good.csv --by group --group family -o out.csv",
        "good.csv: no column 'family'. Columns: sequence, label, split. Rename one, or name the column to use.",
    ),
    Case(
        "a way to split that there is not",
        "split good.csv --by stratifed -o out.csv",
        (
            "Unknown way to split 'stratifed'. Known: random, stratified, group, homology, mutations, position. "
            "Did you mean 'stratified'?"
        ),
    ),
    Case(
        "shares that leave nothing",
        "split good.csv --valid 0.6 --test 0.5 -o out.csv",
        "The shares 0.6 + 0.5 leave nothing for train. Lower one.",
    ),
    Case(
        "a share below 0",
        "split good.csv --valid -0.1 -o out.csv",
        "The valid share is -0.1; it must be at least 0 and below 1.",
    ),
    Case(
        "a folder to split",
        "split data -o out.csv",
        "data is a folder, whose files are splits already. Give one table or FASTA file.",
        {"data/train.csv": GOOD},
    ),
    Case(
        "a table format that there is not",
        "split good.csv -o out.txt",
        "Unknown table format '.txt'. Known: .csv, .tsv, .jsonl, .parquet.",
    ),
    Case(
        "one family alone",
        "split f.csv -o out.csv --by homology",
        (
            "Cannot split 1 group(s) of sequences related at 30 % identity over 80 % of a sequence into train, valid, "
            "test. Raise --identity, or split --by random, mutations or position."
        ),
        {"f.csv": table("sequence,label", *(f"{''.join(PROTEINS)[:at]},{at % 2}" for at in range(70, 76)))},
    ),
    Case(
        "an identity in per cent",
        "split good.csv -o out.csv --by homology --identity 30",
        "The identity 30 is not a share above 0 and up to 1. Give 0.3 for 30 %.",
    ),
    Case(
        "a coverage of nothing",
        "check good.csv --leakage --coverage 0",
        "The coverage 0 is not a share above 0 and up to 1. Give 0.3 for 30 %.",
    ),
    Case(
        "a search for leakage without splits",
        "check n.csv --leakage",
        "Leakage needs a train split and at least one other. Give --valid or --test, or plft split first.",
        {"n.csv": table("sequence,label", "MKTAYIAKQR,1", "QISFVKSHFS,0")},
    ),
    Case(
        "one fold",
        "split good.csv -o out.csv --folds 1",
        "1 folds are none. Give --folds 2 or more.",
    ),
    Case(
        "a mutational scan with insertions",
        "split i.csv -o out.csv --by mutations",
        (
            "i.csv, row 2: 4 residues where the reference has 3 (1 such sequences). A mutational scan needs sequences "
            "of one length; split --by homology or random instead."
        ),
        {"i.csv": table("sequence,label", "MKT,1", "MKTA,0", "MAT,1")},
    ),
    Case(
        "a wild type in no file",
        "split good.csv -o out.csv --by mutations --wild-type wt.fasta",
        "No such file: wt.fasta.",
    ),
)

LETTERS = (
    Case(
        "letters that are refused",
        f"train j.csv --unknown-letters error {TRAIN}",
        "j.csv, row 1: 'J' at position 5 is not an amino acid. Correct it, or pass --unknown-letters map.",
        {"j.csv": GOOD.replace("MKTAYIAKQR", "MKTAJIAKQR")},
    ),
    Case(
        "a policy for letters that there is not",
        f"train good.csv --unknown-letters eror {TRAIN}",
        (
            "Configuration: data.unknown_letters: 'eror' is not known; choose from map, error, drop. Did you mean"
            " 'error'?"
        ),
    ),
    Case(
        "every sequence dropped",
        f"train j.csv --unknown-letters drop {TRAIN}",
        "Every train sequence holds letters outside the alphabet and was dropped. Pass --unknown-letters map.",
        {"j.csv": labelled("no yes no yes no yes", tuple(f"{s}J" for s in PROTEINS))},
    ),
    Case(
        "DNA for a protein model",
        f"train dna.csv {TRAIN}",
        "The sequences look like dna, but this model reads protein. Change one of them.",
        {"dna.csv": labelled("no yes no yes no yes no yes", DNA)},
    ),
    Case(
        "protein for a DNA model",
        "train good.csv --model scratch:tiny-dnabert --max-steps 1 --out out",
        "The sequences look like protein, but this model reads dna. Change one of them.",
    ),
)
