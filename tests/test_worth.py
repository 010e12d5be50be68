"""What is said of fine-tuning beside its baselines: one sentence and a table."""

from __future__ import annotations

import json

import pytest
import yaml

from plft.findings import read_run
from plft.report import write_model_card, write_report
from plft.worth import verdict


def results(metric, own, baselines, task="seq_classification"):
    """metrics.json of a run.  baselines: name -> (value, difference, low, high)."""
    entries = {}
    for name, (value, *gain) in baselines.items():
        gain = dict(zip(("value", "low", "high"), gain, strict=True))
        metrics = {metric: {"value": value, "low": None if value is None else value - 0.1, "high": None}}
        entries[name] = {
            "title": f"the {name}",
            "settings": "k up to 3",
            "splits": {"test": {"metrics": metrics, "difference": {"metric": metric} | gain}},
        }
    split = {"n": 50, "n_scored": 50, "metrics": {metric: {"value": own, "low": own - 0.05, "high": own + 0.05}}}
    return {
        "schema": 1,
        "task": task,
        "classes": ["no", "yes"] if task == "seq_classification" else [],
        "columns": ["label"],
        "main_metric": metric,
        "splits": {"valid": split, "test": split},
        "baselines": entries,
    }


GAINED = {"kmers": (0.6, 0.2, 0.1, 0.3), "constant": (0.0, 0.8, 0.7, 0.9)}


def test_a_gain_is_told_with_the_paired_interval_over_the_best_baseline():
    assert verdict(results("mcc", 0.8, GAINED)) == (
        "Fine-tuning added 0.200 MCC (95 % interval 0.100 to 0.300) over the best baseline, the kmers (MCC 0.600)."
    )


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.2), (0.0, 0.1)])
def test_an_interval_with_zero_in_it_tells_nothing_apart(low, high):
    said = verdict(results("mcc", 0.65, {"kmers": (0.6, 0.05, low, high)}))
    assert said.startswith(
        "Fine-tuning added nothing that can be told apart from the best baseline, the kmers (MCC 0.600)"
    )
    assert "the difference is 0.050" in said


def test_a_baseline_that_wins_is_told_too():
    assert verdict(results("mcc", 0.4, {"kmers": (0.6, -0.2, -0.3, -0.1)})) == (
        "The best baseline, the kmers (MCC 0.600), was better than the fine-tuned model by 0.200 MCC "
        "(95 % interval 0.100 to 0.300)."
    )


def test_errors_are_better_when_lower():
    baselines = {"kmers": (1500.0, -1200.0, -1300.0, -1100.0), "constant": (2000.0, -1700.0, -1800.0, -1600.0)}
    assert verdict(results("rmse", 300.0, baselines, "seq_regression")) == (
        "Fine-tuning removed 1,200 RMSE (95 % interval 1,100 to 1,300) over the best baseline, the kmers (RMSE 1,500)."
    )


def test_a_difference_too_small_to_write_is_not_written_as_zero():
    said = verdict(results("mcc", 0.6, {"kmers": (0.6, 0.0002, 0.0001, 0.0003)}))
    assert said == "Fine-tuning added less than 0.001 MCC over the best baseline, the kmers (MCC 0.600)."


def test_without_a_baseline_that_has_a_value_nothing_is_said():
    assert verdict(results("mcc", 0.6, {})) == ""
    assert verdict(results("spearman", 0.6, {"constant": (None, None, None, None)}, "seq_regression")) == ""


def test_page_and_card_begin_with_the_sentence_and_show_the_table(tmp_path):
    found = results("mcc", 0.8, GAINED) | {"baselines_left_out": {"nearest <one>": "too slow"}}
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"data": {"file": "d.csv"}, "model": {"name": "m"}}))
    sentence = verdict(read_run(tmp_path).results)
    page = write_report(tmp_path).read_text()
    assert page.index(sentence) < page.index("on 50 sequences")
    assert page.index("fine-tuned model</th>") < page.index("the kmers</th>") < page.index("the constant</th>")
    assert "Not trained: nearest &lt;one&gt; (too slow)." in page
    card = write_model_card(tmp_path).read_text()
    assert card.index(sentence) < card.index("**MCC")
    assert "| the kmers | k up to 3 | 0.600 |  | 0.200 | 0.100 to 0.300 |" in card
