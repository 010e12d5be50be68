"""The report page and the model card of made-up runs of every kind."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from plft.errors import PlftError
from plft.labels import TaskType
from plft.metrics import evaluate
from plft.mistakes import worst_mistakes
from plft.report import write_model_card, write_report

SHARED = "8 sequences shared by test and train: results look better than they are."
MINUS = "\N{MINUS SIGN}"
VOID_TAGS = {"meta", "link", "br", "path", "img"}
LOCATIONS = [
    "cytoplasm",
    "nucleus",
    "membrane",
    "mitochondrion",
    "secreted",
    "plastid",
    "ER",
    "Golgi",
    "lysosome",
    "peroxisome",
]
MANY = [f"fold {at}" for at in range(30)]
# name of the run: task, classes or columns, main metric
RUNS = {
    "binary": (TaskType.SEQ_CLASSIFICATION, ["other", "effector"], "mcc"),
    "locations": (TaskType.SEQ_CLASSIFICATION, LOCATIONS, "mcc"),
    "folds": (TaskType.SEQ_CLASSIFICATION, MANY, "mcc"),
    "fitness": (TaskType.SEQ_REGRESSION, ["label"], "spearman"),
    "stability": (TaskType.SEQ_REGRESSION, ["dG", "Tm"], "spearman"),
    "q3": (TaskType.TOKEN_CLASSIFICATION, ["C", "E", "H"], "accuracy"),
    "disorder": (TaskType.TOKEN_REGRESSION, ["label"], "spearman"),
    "tags": (TaskType.SEQ_MULTILABEL, LOCATIONS[:5], "f1_micro"),
}


def predictions(task, width, n, random):
    """Made-up outputs and targets of n sequences, as `evaluate` takes them."""
    outputs, targets = [], []
    for length in random.integers(40, 90, n) if task.is_residue else [1] * n:
        if task.is_regression:
            true = random.normal(size=(length, width)).astype(np.float32)
            out = 0.8 * true + 0.45 * random.normal(size=true.shape)
            flat = (out[:, 0], true[:, 0]) if task.is_residue else (out[0], true[0])
        elif task.is_multilabel:
            true = (random.random((1, width)) < [0.5, 0.4, 0.3, 0.15, 0.1]).astype(np.float32)
            flat = (1 / (1 + np.exp(-(random.normal(size=width) * 1.3 + 4 * true[0] - 2))), true[0])
        else:
            share = np.linspace(3, 1, width)
            true = random.choice(width, length, p=share / share.sum())
            score = np.exp(1.3 * random.normal(size=(length, width)) + 2.5 * np.eye(width)[true])
            probability = score / score.sum(axis=1, keepdims=True)
            flat = (probability, true) if task.is_residue else (probability[0], true[0])
        outputs.append(flat[0])
        targets.append(flat[1])
    return outputs, targets


def table_rows(task, names, outputs, targets):
    """Rows of predictions/<split>.csv in the shape of the run folder's contract."""
    for at, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        name = f"sp|P{at:05d}|PROT{at}"
        if not task.is_residue:
            yield {"id": name, **cells(task, names, output, target)}
            continue
        for position, (out, true) in enumerate(zip(output, target, strict=True), start=1):
            yield {"id": name, "position": position, "residue": "A", **cells(task, names, np.atleast_1d(out), true)}


def cells(task, names, output, target):
    if task.is_regression:
        pairs = zip(names, output, np.atleast_1d(target), strict=True)
        many = len(names) > 1
        return {
            f"{what}_{n}" if many else what: v for n, o, t in pairs for what, v in (("label", t), ("prediction", o))
        }
    probabilities = {f"probability_{n}": p for n, p in zip(names, output, strict=True)}
    if task.is_multilabel:
        sets = {"label": target, "prediction": output}
        return {
            k: "|".join(n for n, v in zip(names, s, strict=True) if v >= 0.5) or "|" for k, s in sets.items()
        } | probabilities
    return {"label": names[int(target)], "prediction": names[int(np.argmax(output))], **probabilities}


def make_run(folder: Path, name: str, n: int = 60) -> Path:
    """Write a run folder with the documented files of a made-up run."""
    task, names, main_metric = RUNS[name]
    random = np.random.default_rng(5)
    run = folder / name
    (run / "predictions").mkdir(parents=True)
    splits = {}
    for split, size in {"test": n, "valid": n // 2}.items() if name != "binary" else [("test", n)]:
        outputs, targets = predictions(task, len(names), size, random)
        splits[split] = evaluate(task, outputs, targets, names, names, resamples=100).to_json()
        rows = list(table_rows(task, names, outputs, targets))
        with (run / "predictions" / f"{split}.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    classes = [] if task.is_regression else names
    results = {"schema": 1, "task": task.value, "classes": classes, "columns": names if task.is_regression else []}
    results |= {"main_metric": main_metric, "splits": splits, "baselines": {}}
    (run / "metrics.json").write_text(json.dumps(results))
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history(main_metric, random)))
    (run / "environment.json").write_text(json.dumps(environment(name, n)))
    (run / "run.yaml").write_text(yaml.safe_dump(config(name, task)))
    return run


def history(main_metric, random):
    for epoch in range(1, 11):
        for part in (0.5, 1.0):
            at = epoch - 1 + part
            yield {"step": int(at * 40), "epoch": at, "loss": 0.25 + 0.6 * np.exp(-at / 3) + 0.02 * random.random()}
        score = 0.8 - 0.55 * np.exp(-epoch / 2.5) + 0.02 * random.random()
        yield {"step": epoch * 40, "epoch": epoch, "valid_loss": 0.4 + 0.4 * np.exp(-epoch / 2) + 0.008 * epoch} | {
            f"valid_{main_metric}": score
        }


def environment(name, n):
    return {
        "versions": {"plft": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "device": "cpu",
        "precision": "fp32",
        "threads": 2,
        "data": {
            "file": f"{name}.csv",
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "counts": {"train": 8 * n, "valid": n // 2, "test": n},
            "truncated": 12,
            "dropped": 0,
            "duplicated": 3,
            "unknown_letters": 41,
            "audit": {
                "lengths": {"min": 31, "q5": 40, "median": 214.5, "q95": 900, "max": 2210, "residues": 99999},
                "labels": audited_labels(name, n),
                "warnings": [SHARED],
            },
        },
        "sentences": ["12 sequences are longer than the model's input and lost their end", SHARED],
        "parameters": {"trainable": 151_234, "total": 8_012_345},
        "family": "esm2",
        "model": {"name": "scratch:esm2-8m", "revision": None, "sha256": None},
        "seconds": 192.4,
        "command": f"plft train {name}.csv --model scratch:esm2-8m --tune lora --out {name}",
    }


def audited_labels(name, n):
    task, names, _ = RUNS[name]
    if task.is_regression:
        return {
            split: {"ranges": {c: {"min": -2.5, "mean": 0.01, "max": 3.25} for c in names}}
            for split in ("train", "test")
        }
    return {
        split: {"classes": {c: size * n - 3 * at for at, c in enumerate(names)}}
        for split, size in (("test", 1), ("train", 8))
    }


def config(name, task):
    return {
        "task": task.value,
        "data": {"file": f"{name}.csv"},
        "model": {"name": "scratch:esm2-8m", "head": "mlp", "pooling": "mean"},
        "tuning": {"method": "lora", "rank": 8, "alpha": 16.0},
        "training": {"epochs": 10, "seed": 0},
    }


class Outline(HTMLParser):
    """Collects open tags that were never closed, requests a browser would make, plots without words, and the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.requests, self.mute_plots, self.tags, self.text = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.requests += [v for k, v in attrs if k in ("src", "href", "srcset", "action") and not v.startswith("data:")]
        if tag == "svg" and not (attributes.get("aria-label") or attributes.get("aria-hidden")):
            self.mute_plots.append(attributes)
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text.append(" " if tag in ("th", "td", "dt") else "")

    def handle_data(self, data):
        self.text.append(data)


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def words_of(run: Path) -> str:
    return " ".join("".join(Outline(page_of(run)).text).split())


def rewrite(file: Path, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_gives_one_self_contained_page(tmp_path, name):
    page = page_of(make_run(tmp_path, name, n=30))
    outline = Outline(page)
    assert outline.open == []
    assert outline.requests == []
    assert outline.mute_plots == []
    assert not {"script", "iframe", "img"} & set(outline.tags)
    assert "http" not in page
    assert "url(" not in page
    assert 'name="viewport"' in page
    assert "@media print" in page
    assert not re.search(r"\bnan\b|\bNone\b|Undefined|\{\{", " ".join(outline.text))


@pytest.mark.parametrize("name", RUNS)
def test_the_page_shows_training_results_data_and_mistakes(tmp_path, name):
    words = words_of(make_run(tmp_path, name, n=30))
    for part in ("What was run", "Results", "Worst mistakes, test", "Training", "Data", "Use it again"):
        assert part in words
    assert "plft predict" in words
    assert "151,234 of 8,012,345 (1.89 %)" in words
    assert "Warning" in page_of(tmp_path / name)


def test_the_first_sentence_has_the_main_metric_of_the_test_split_with_its_interval(tmp_path):
    run = make_run(tmp_path, "binary", n=30)
    metric = {"value": 0.8123, "low": 0.7, "high": 0.9}
    splits = json.loads((run / "metrics.json").read_text())["splits"]
    splits["test"]["metrics"]["mcc"] = metric
    rewrite(run / "metrics.json", splits={"valid": splits["test"], "test": splits["test"]})
    assert "MCC 0.812 on 30 sequences of the test split (95 % interval 0.700 to 0.900)." in words_of(run)


def test_residue_runs_count_residues_and_sequences(tmp_path):
    assert re.search(
        r"Accuracy 0\.\d{3} on [\d,]+ residues in 30 sequences of", words_of(make_run(tmp_path, "q3", n=30))
    )


def test_an_undefined_main_metric_is_called_undefined(tmp_path):
    run = make_run(tmp_path, "binary", n=30)
    splits = json.loads((run / "metrics.json").read_text())["splits"]
    splits["test"]["metrics"]["mcc"] = {"value": None, "low": None, "high": None}
    rewrite(run / "metrics.json", splits=splits)
    assert "MCC undefined on 30 sequences of the test split." in words_of(run)


def test_the_confusion_matrix_is_shown_whole_or_as_the_most_frequent_confusions(tmp_path):
    few, many = make_run(tmp_path, "locations"), make_run(tmp_path, "folds")
    assert "Confusion matrix" in words_of(few)
    assert "Most frequent confusions" in words_of(many)
    assert re.search(r"fold \d+ taken for fold \d+", words_of(many))


def test_the_data_section_tells_the_audit_and_says_nothing_twice(tmp_path):
    words = words_of(make_run(tmp_path, "binary"))
    assert "Lengths 31 to 2,210 residues, median 214.5." in words
    assert "class train test other 480 (50%) 60 (51%) effector 477 (50%) 57 (49%)" in words
    assert words.count(SHARED) == 1
    assert words.count("12 sequences are longer") == 1


def test_without_an_audit_the_labels_of_the_evaluated_splits_are_shown(tmp_path):
    run = make_run(tmp_path, "fitness")
    rewrite(run / "environment.json", data={"truncated": 4}, sentences=[])
    words = words_of(run)
    assert re.search(r"label min mean max valid \S+ \S+ \S+ test \S+ \S+ \S+", words)
    assert "4 sequences were longer than the model reads and lost their end." in words


def test_several_columns_each_have_a_row_and_a_plot(tmp_path):
    words = words_of(make_run(tmp_path, "stability"))
    assert "Values are means over the columns." in words
    assert "dG, predicted against true" in words
    assert "Tm, predicted against true" in words


def test_names_from_the_data_are_text_and_never_markup(tmp_path):
    run = make_run(tmp_path, "binary", n=30)
    hostile = '<script>alert("x")</script>'
    text = (run / "metrics.json").read_text().replace('"effector"', json.dumps(hostile))
    (run / "metrics.json").write_text(text)
    rewrite(run / "environment.json", sentences=[hostile], command=hostile, family=hostile)
    outline = Outline(page_of(run))
    assert "script" not in outline.tags
    assert hostile in "".join(outline.text)
    assert "<script>" not in write_model_card(run).read_text()


def test_a_page_is_written_without_history_environment_and_predictions(tmp_path):
    run = make_run(tmp_path, "binary", n=30)
    for name in ("history.jsonl", "environment.json", "predictions/test.csv"):
        (run / name).unlink()
    words = words_of(run)
    assert "Training time" not in words
    assert "Worst mistakes" not in words
    assert "with scratch:esm2-8m" in words


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", None, "there is no metrics.json, so this is not a finished run"),
        ("run.yaml", None, "there is no run.yaml, so this is not a finished run"),
        ("metrics.json", "{", "metrics.json is damaged"),
        ("metrics.json", '{"task": "seq_classification", "splits": {}}', "no split was evaluated"),
        ("metrics.json", '{"task": "seq_clasification"}', "Did you mean 'seq_classification'"),
        ("metrics.json", "[]", "metrics.json is damaged"),
        ("run.yaml", "a: [", "run.yaml is damaged"),
        ("run.yaml", "text", "run.yaml is damaged"),
        ("history.jsonl", '{"step": 1}\n{"st', "history.jsonl is damaged"),
        ("environment.json", "\x00", "environment.json is damaged"),
        ("predictions/test.csv", "id,prediction\na,b\n", "there is no column 'label'"),
    ],
)
def test_a_broken_run_folder_is_said_in_one_line(tmp_path, name, content, message):
    run = make_run(tmp_path, "binary", n=30)
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(PlftError, match=message) as raised:
        write_report(run)
    assert "\n" not in str(raised.value)


def test_writing_again_replaces_the_page_and_leaves_nothing_else(tmp_path):
    run = make_run(tmp_path, "fitness", n=30)
    before = {path.name for path in run.iterdir()}
    assert page_of(run) == page_of(run)
    assert {path.name for path in run.iterdir()} - before == {"report.html"}


def test_the_model_card_has_front_matter_for_the_hub(tmp_path):
    run = make_run(tmp_path, "locations", n=30)
    (run / "run.yaml").write_text(yaml.safe_dump({"model": {"name": "facebook/esm2_t6_8M_UR50D@main"}}))
    _, front, body = write_model_card(run).read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["base_model"] == "facebook/esm2_t6_8M_UR50D"
    assert card["model-index"][0]["results"][0]["metrics"][0]["type"] == "mcc"
    assert "| MCC |" in body
    assert SHARED in body


@pytest.mark.parametrize("name", RUNS)
def test_every_table_of_the_model_card_has_as_many_cells_in_each_row(tmp_path, name):
    card = write_model_card(make_run(tmp_path, name, n=30)).read_text()
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def mistakes_in(tmp_path, task, text):
    (tmp_path / "test.csv").write_text(text)
    return worst_mistakes(tmp_path / "test.csv", task, most=2)


def test_wrong_classes_come_with_the_most_confident_first(tmp_path):
    text = "id,label,prediction,probability_a,probability_b\np,a,b,0.3,0.7\nq,b,b,0,1\nr,b,a,0.9,0.1\ns,,a,0.99,0.01\n"
    found = mistakes_in(tmp_path, TaskType.SEQ_CLASSIFICATION, text)
    assert found.rows == (("r", "b", "a", "90.0%"), ("p", "a", "b", "70.0%"))
    assert found.n == 2


def test_wrong_values_come_with_the_largest_error_first(tmp_path):
    text = "id,label,prediction\np,1,1.5\nq,2,-3\nr,,9\ns,4,4.1\n"
    found = mistakes_in(tmp_path, TaskType.SEQ_REGRESSION, text)
    assert found.rows == (("q", "2.00", f"{MINUS}3.00", f"{MINUS}5.00"), ("p", "1.00", "1.50", "+0.500"))


def test_wrong_values_name_their_column_where_there_are_several(tmp_path):
    text = "id,label_dG,prediction_dG,label_Tm,prediction_Tm\np,1,1.5,2,5\n"
    found = mistakes_in(tmp_path, TaskType.SEQ_REGRESSION, text)
    assert [row[0] for row in found.rows] == ["p (Tm)", "p (dG)"]


def test_wrong_sets_come_with_the_most_wrong_labels_first(tmp_path):
    text = "id,label,prediction\np,a|b,a\nq,a,b|c\nr,a,a\ns,,a\nt,|,|\nu,a|b?,a\nv,a|b?,a|b\n"
    found = mistakes_in(tmp_path, TaskType.SEQ_MULTILABEL, text)
    assert found.rows == (("q", "a", "b, c", "none"), ("p", "b", "none", "a"))


def test_residues_are_summed_up_per_sequence_even_when_two_share_a_name(tmp_path):
    residues = ["p,1,M,H,H", "p,2,K,H,E", "p,3,T,,E", "p,1,M,E,H", "p,2,K,E,H"]
    found = mistakes_in(
        tmp_path, TaskType.TOKEN_CLASSIFICATION, "\n".join(["id,position,residue,label,prediction", *residues])
    )
    assert found.rows == (("p", "2", "2", "0.0%"), ("p", "2", "1", "50.0%"))


def test_residue_values_are_averaged_per_sequence(tmp_path):
    text = "id,position,residue,label,prediction\np,1,M,1,2\np,2,K,1,0\nq,1,M,5,5.5\n"
    found = mistakes_in(tmp_path, TaskType.TOKEN_REGRESSION, text)
    assert found.rows == (("p", "2", "1.00", "+0.00"), ("q", "1", "0.500", "+0.500"))
