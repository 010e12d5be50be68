"""What the report says of calibration, coverage and far inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plft.findings import RunFiles
from plft.labels import TaskType
from plft.reliability import certainty_notes, certainty_table, reliability_diagram

POINTS = {"confidence": [0.2, 0.9], "frequency": [0.3, 0.8]}
ENTRY = {
    "n": 40,
    "bins": 2,
    "before": {"ece": 0.25, **POINTS},
    "after": {"ece": 0.0984, **POINTS},
    "coverage": {"value": 0.925, "low": 0.85, "high": 1.0},
    "size": 1.25,
    "far": 0.05,
}
WIDTHS = {"n": 40, "coverage": {"value": 0.9, "low": None, "high": None}, "width": [2.0, 0.51]}


def run_with(task: str, calibration: dict | None, classes: list[str]) -> RunFiles:
    """A run of which metrics.json says this."""
    splits = {"test": {"metrics": {}}, "valid": {"metrics": {}}}
    results = {"splits": splits, "classes": classes} | ({} if calibration is None else {"calibration": calibration})
    return RunFiles(Path("run"), TaskType(task), {}, results, [], {})


def found(entry: dict, **more: object) -> dict:
    kept = {"method": "temperature", "temperature": [1.4], "fitted_on": "valid", "level": 0.9, "far_above": 2.0}
    return kept | {"splits": {"test": entry, "valid": entry}} | more


def test_the_table_has_the_error_before_and_after_the_coverage_and_what_it_costs() -> None:
    table = certainty_table(run_with("seq_classification", found(ENTRY), ["no", "yes"]))
    assert table.header == (
        *("split", "calibration error", "as trained", "covered at 90%", "classes in a set", "far inputs"),
    )
    assert table.rows[0] == ("test", "0.098", "0.250", "92.5% (85.0% to 100.0%)", "1.25", "5.0%")


def test_a_regression_has_widths_and_no_calibration_error() -> None:
    run = run_with("seq_regression", found(WIDTHS, method="none", temperature=[], far_above=None), [])
    assert certainty_table(run).header == ("split", "covered at 90%", "mean width of the intervals")
    assert certainty_table(run).rows[0] == ("test", "90.0%", "2.00, 0.510")
    assert certainty_notes(run) == ["Fitted on valid, whose own numbers are therefore too good."]
    assert reliability_diagram(run) is None


def test_the_notes_name_method_bins_and_what_weakens_the_promise() -> None:
    notes = " ".join(certainty_notes(run_with("token_classification", found(ENTRY), ["C", "H"])))
    for words in ("Temperature scaling, temperature 1.40.", "over 2 bins", "Residues of one protein depend", "Far:"):
        assert words in notes


def test_what_a_temperature_cannot_mend_is_said() -> None:
    run = run_with("seq_classification", found(ENTRY, level=0.975), ["no", "yes"])
    weighted = replace(run, config={"training": {"class_weights": "balanced"}})
    assert not any("Class weights" in note for note in certainty_notes(run))
    assert any("Class weights" in note for note in certainty_notes(weighted))
    assert "covered at 97.5%" in certainty_table(run).header


def test_the_diagram_shows_both_curves_and_the_diagonal() -> None:
    diagram = reliability_diagram(run_with("seq_classification", found(ENTRY), ["no", "yes"]))
    assert diagram.plot.count('class="line ') == 2
    assert 'class="guide"' in diagram.plot
    assert "probability of yes" in diagram.plot
    assert diagram.legend == ((0, "calibrated"), (1, "as trained"))
    assert diagram.caption == "Reliability on test: calibration error 0.098, 0.250 before calibration."


def test_uncalibrated_probabilities_have_one_curve() -> None:
    run = run_with("seq_classification", found(ENTRY, method="none", temperature=[]), ["a", "b", "c"])
    diagram = reliability_diagram(run)
    assert (diagram.plot.count('class="line '), diagram.legend) == (1, ())
    assert "share that is right" in diagram.plot
    assert "as trained" not in certainty_table(run).header


@pytest.mark.parametrize("calibration", [None, {}])
def test_a_run_without_calibration_shows_none(calibration: dict | None) -> None:
    run = run_with("seq_classification", calibration, ["no", "yes"])
    assert (certainty_table(run), certainty_notes(run), reliability_diagram(run)) == (None, [], None)
