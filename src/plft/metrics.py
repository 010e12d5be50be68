"""Predictions and targets -> numbers with 95 % intervals. TABLE: METRICS.

A metric is one row: a function of the tally of a batch of resamples, in which every count is a sum over sequences, so
that the same function gives the value (every sequence once) and its bootstrap replicates (whole-number weights).

Conventions: a ratio 0/0 that scikit-learn would call 0 (precision of a class that is never predicted) is 0; averages
over classes leave out classes that occur neither in the targets nor in the predictions; what has no meaning at all
(ROC-AUC with one class, correlation with a constant) is NaN, written as null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plft.labels import TaskType
from plft.resampling import Floats, Indices, affordable, divide, draw, interval, mean_of_defined
from plft.tallies import (
    BINARY,
    MULTICLASS,
    MULTILABEL,
    REGRESSION,
    Agreement,
    ClassScorer,
    Scored,
    Tally,
    ValueScorer,
    kind_of,
    scorer_of,
)

MOST_CLASSES_IN_CONFUSION = 100
MOST_CURVES = 20
MOST_CURVE_POINTS = 200
MOST_SCATTER_POINTS = 2000


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % bootstrap interval; each NaN where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def to_json(self) -> dict[str, float | None]:
        """Return value, low and high, with None in place of NaN."""
        return {name: _or_none(getattr(self, name)) for name in ("value", "low", "high")}


@dataclass(frozen=True)
class Evaluation:
    """What one set of predictions is worth.

    n: sequences given.  n_scored: targets that were not missing (residues in residue tasks).  n_sequences: sequences
    with at least one of them, the units of the bootstrap.  details: see `evaluate`; ready for JSON.  replicates: each
    metric's values under the resamples, (resamples,), which are the same for all predictions of the same targets.
    """

    n: int
    n_scored: int
    n_sequences: int
    metrics: dict[str, Metric]
    details: dict[str, Any] = field(default_factory=dict)
    replicates: dict[str, Floats] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the plain form kept under ``splits`` in metrics.json."""
        metrics = {name: metric.to_json() for name, metric in self.metrics.items()}
        counts = {"n": self.n, "n_scored": self.n_scored, "n_sequences": self.n_sequences}
        return {**counts, "metrics": metrics, "details": self.details}


def difference(one: Evaluation, other: Evaluation, metric: str) -> Metric:
    """Return by how much a metric of one prediction exceeds that of another one of the same targets.

    The 95 % percentile interval is that of the paired bootstrap: both are scored on the same resamples of sequences, so
    that what makes a resample easy or hard for both cancels.  Raises ValueError where they were not.
    """
    pair = [each.replicates.get(metric, np.zeros(0)) for each in (one, other)]
    if (one.n_scored, one.n_sequences, len(pair[0])) != (other.n_scored, other.n_sequences, len(pair[1])):
        raise ValueError("the two evaluations are not of the same targets and resamples")
    value = one.metrics[metric].value - other.metrics[metric].value
    return _with_interval(np.array([value]), [pair[0] - pair[1]] if len(pair[0]) else [])


def _precision(tally: Tally) -> Floats:
    return np.where(tally.occurs, divide(tally.hits, tally.predicted, otherwise=0.0), np.nan)


def _recall(tally: Tally) -> Floats:
    return np.where(tally.occurs, divide(tally.hits, tally.true, otherwise=0.0), np.nan)


def _f1(tally: Tally) -> Floats:
    return divide(2 * tally.hits, tally.true + tally.predicted)


def _specificity(tally: Tally) -> Floats:
    negatives = tally.total[:, None] - tally.true
    false_positives = tally.predicted - tally.hits
    return np.where(tally.occurs, divide(negatives - false_positives, negatives), np.nan)


def _sensitivity(tally: Tally) -> Floats:
    recall = tally.one_number(_recall(tally))
    return np.where(tally.true[:, -1] > 0, recall, np.nan) if tally.is_binary else recall


def _balanced_accuracy(tally: Tally) -> Floats:
    return mean_of_defined(divide(tally.hits, tally.true))


def _mcc(tally: Tally) -> Floats:
    """Gorodkin's R_K, for two classes Matthews' coefficient; 0 for a constant prediction, NaN for a constant target."""
    share_true = divide(tally.true, tally.total[:, None])
    share_predicted = divide(tally.predicted, tally.total[:, None])
    agreement = divide(tally.exact, tally.total) - (share_true * share_predicted).sum(axis=1)
    spread_true = 1 - (share_true**2).sum(axis=1)
    spread_predicted = 1 - (share_predicted**2).sum(axis=1)
    value = divide(agreement, np.sqrt(np.abs(spread_true * spread_predicted)), otherwise=0.0)
    value = np.where((tally.predicted > 0).sum(axis=1) > 1, value, 0.0)
    return np.where((tally.true > 0).sum(axis=1) > 1, value, np.nan)


def _f1_micro(tally: Tally) -> Floats:
    return divide(2 * tally.hits.sum(axis=1), (tally.true + tally.predicted).sum(axis=1))


def _pearson(pairs: Agreement) -> Floats:
    covariance = pairs.xy - divide(pairs.x * pairs.y, pairs.total)
    return np.clip(divide(covariance, np.sqrt(pairs.spread_x * pairs.spread_y)), -1.0, 1.0)


@dataclass(frozen=True)
class MetricRow:
    """One metric.  kinds: what it applies to.  function: a Tally or an Agreement -> (rows,) or (rows, columns)."""

    name: str
    title: str
    kinds: frozenset[str]
    higher_is_better: bool
    function: Callable[[Any], Floats]
    meaning: str


ONE_OF_MANY = frozenset({BINARY, MULTICLASS})
ANY_CLASS = ONE_OF_MANY | {MULTILABEL}
RANKED = "ranked"  # numbers per sequence, of which somebody would pick the highest: variants of a mutational scan

_ROWS = (
    ("mcc", "MCC", ONE_OF_MANY, _mcc, "correlation of predicted and true classes; 0 is guessing, 1 is perfect"),
    ("accuracy", "Accuracy", ONE_OF_MANY, lambda t: divide(t.exact, t.total), "share predicted correctly"),
    ("balanced_accuracy", "Balanced accuracy", ONE_OF_MANY, _balanced_accuracy, "recall averaged over classes"),
    ("f1", "F1", {BINARY}, lambda t: t.one_number(_f1(t)), "harmonic mean of precision and recall"),
    ("f1_micro", "F1 (micro)", {MULTILABEL}, _f1_micro, "F1 over all labels of all sequences together"),
    ("f1_macro", "F1 (macro)", ANY_CLASS, lambda t: mean_of_defined(_f1(t)), "F1 averaged over classes"),
    ("precision", "Precision", ONE_OF_MANY, lambda t: t.one_number(_precision(t)), "share of calls that are right"),
    ("recall", "Recall (sensitivity)", ONE_OF_MANY, _sensitivity, "share of a class that is found"),
    (
        "specificity",
        "Specificity",
        ONE_OF_MANY,
        lambda t: t.one_number(_specificity(t)),
        "share of the rest left alone",
    ),
    ("subset_accuracy", "Subset accuracy", {MULTILABEL}, lambda t: divide(t.exact, t.total), "all labels right"),
    ("jaccard", "Jaccard index", {MULTILABEL}, lambda t: divide(t.overlap, t.total), "shared labels over all labels"),
    ("roc_auc", "ROC-AUC", ANY_CLASS, lambda t: t.one_number(t.roc_auc), "chance that a hit outranks a non-hit"),
    ("pr_auc", "PR-AUC", ANY_CLASS, lambda t: t.one_number(t.pr_auc), "average precision over all thresholds"),
    ("spearman", "Spearman", {REGRESSION}, lambda a: a.spearman, "correlation of ranks"),
    ("ndcg", "NDCG, top 10 %", {RANKED}, lambda a: a.ndcg, "order of those predicted best; 1 is perfect"),
    ("top_recall", "Recall, top 10 %", {RANKED}, lambda a: a.top_recall, "share of the best tenth that is picked"),
    ("pearson", "Pearson", {REGRESSION}, _pearson, "linear correlation"),
    ("r2", "R²", {REGRESSION}, lambda a: 1 - divide(a.squared, a.spread_y), "share of variance explained"),
    ("rmse", "RMSE", {REGRESSION}, lambda a: np.sqrt(divide(a.squared, a.total)), "root mean squared error"),
    ("mae", "MAE", {REGRESSION}, lambda a: divide(a.absolute, a.total), "mean absolute error"),
)
LOWER_IS_BETTER = {"rmse", "mae"}
METRICS: dict[str, MetricRow] = {
    name: MetricRow(name, title, frozenset(kinds), name not in LOWER_IS_BETTER, function, meaning)
    for name, title, kinds, function, meaning in _ROWS
}


def metrics_for(task: TaskType, n_classes: int) -> list[MetricRow]:
    """Return the rows of METRICS that a task has, in the order of the table."""
    kinds = {kind_of(task, n_classes), *([RANKED] if task is TaskType.SEQ_REGRESSION else [])}
    return [row for row in METRICS.values() if row.kinds & kinds]


def _replicates(
    scored: Scored, scorer: ClassScorer | ValueScorer, rows: Sequence[MetricRow], resamples: int, seed: int
) -> dict[str, list[Floats]]:
    """Return each metric's values under the resamples, in blocks; no blocks when no resamples are asked for."""
    collected: dict[str, list[Floats]] = {row.name: [] for row in rows}
    for weights in draw(scored.n_sequences, resamples, seed, n_items=len(scored.sequence)):
        tally = scorer.tally(weights)
        for row in rows:
            collected[row.name].append(_over_columns(row.function(tally)))
    return collected


def _over_columns(values: Floats) -> Floats:
    return mean_of_defined(values) if values.ndim == 2 else values


def point(
    task: TaskType,
    outputs: Sequence[NDArray[Any]],
    targets: Sequence[NDArray[Any]],
    classes: Sequence[str] = (),
) -> dict[str, float]:
    """Return every metric of the task without intervals: what training looks at after each epoch.

    outputs, targets, classes: as for `evaluate`.  Undefined metrics are NaN.
    """
    scored = Scored.of(task, outputs, targets)
    _refuse_other_classes(scored, classes)
    tally = scorer_of(scored).tally(np.ones((1, scored.n_sequences)))
    rows = metrics_for(task, scored.n_outputs)
    return {row.name: float(_over_columns(row.function(tally))[0]) for row in rows}


def evaluate(
    task: TaskType,
    outputs: Sequence[NDArray[Any]],
    targets: Sequence[NDArray[Any]],
    classes: Sequence[str] = (),
    columns: Sequence[str] = ("label",),
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score predictions, with 95 % percentile intervals from a bootstrap over sequences.

    outputs: one array per sequence: probabilities (classes,) or (residues, classes); values (columns,) or (residues,).
    targets: one array per sequence as from `LabelSpace.encode`; -100 and NaN are missing and never scored.  Residues of
    one sequence depend on each other, so residue tasks resample whole sequences too.  With millions of residues fewer
    resamples are drawn (never below 100); ``details["resamples"]`` says how many.

    details, classification: confusion (rows are true; up to 100 classes), per_class {class: {precision, recall, f1,
    roc_auc, pr_auc, support}}, roc {class: [false positive rate, true positive rate]}, pr {class: [recall, precision]}.
    details, regression: per_column {column: {metric: value}}, scatter {column: [true, predicted]} (up to 2000 points),
    range {column: {min, mean, max}} of the targets.

    Raises PlftError when no target is scored or a prediction is not finite.
    """
    scored = Scored.of(task, outputs, targets)
    _refuse_other_classes(scored, classes)
    scorer = scorer_of(scored)
    rows = metrics_for(task, scored.n_outputs)
    whole = scorer.tally(np.ones((1, scored.n_sequences)))
    resamples = affordable(resamples, scored.outputs.size) if scored.n_sequences > 1 else 0
    replicates = _replicates(scored, scorer, rows, resamples, seed)
    metrics = {row.name: _with_interval(_over_columns(row.function(whole)), replicates[row.name]) for row in rows}
    if isinstance(whole, Agreement):
        details = _describe_values(scored, whole, rows, columns)
    else:
        details = _describe_classes(scored, whole, classes)
    joined = {name: np.concatenate(blocks) for name, blocks in replicates.items() if blocks}
    details = {"resamples": resamples, **details}
    return Evaluation(scored.n, len(scored.sequence), scored.n_sequences, metrics, details, joined)


def resampled(
    task: TaskType,
    outputs: Sequence[NDArray[Any]],
    targets: Sequence[NDArray[Any]],
    metric: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, Floats]:
    """Return one metric and its values under the resamples, (resamples,), as `evaluate` has them but without the rest.

    The resamples are the same for all predictions of the same targets; for millions of scores fewer are drawn.
    """
    scored = Scored.of(task, outputs, targets)
    scorer, row = _without_needless(scorer_of(scored), metric), METRICS[metric]
    whole = scorer.tally(np.ones((1, scored.n_sequences)))
    resamples = affordable(resamples, scored.outputs.size) if scored.n_sequences > 1 else 0
    blocks = _replicates(scored, scorer, [row], resamples, seed)[metric]
    return float(_over_columns(row.function(whole))[0]), np.concatenate(blocks) if blocks else np.zeros(0)


def _without_needless(scorer: ClassScorer | ValueScorer, metric: str) -> ClassScorer | ValueScorer:
    """Leave out what takes most of the time and only these metrics read."""
    if isinstance(scorer, ValueScorer):
        return scorer if metric in ("ndcg", "top_recall") else replace(scorer, tops=())
    return scorer if metric in ("roc_auc", "pr_auc") else replace(scorer, rankings=())


def _refuse_other_classes(scored: Scored, classes: Sequence[str]) -> None:
    if classes and scored.kind != REGRESSION and len(classes) != scored.n_outputs:
        raise ValueError(f"probabilities of {scored.n_outputs} classes, but {len(classes)} class names")


def _with_interval(value: Floats, replicates: list[Floats]) -> Metric:
    if not np.isfinite(value[0]) or not replicates:
        return Metric(float(value[0]))
    return Metric(float(value[0]), *interval(np.concatenate(replicates)))


def _describe_values(
    scored: Scored, whole: Agreement, rows: Sequence[MetricRow], columns: Sequence[str]
) -> dict[str, Any]:
    per_column, scatter, ranges = {}, {}, {}
    for at, name in enumerate(columns[: scored.n_outputs]):
        per_column[name] = {row.name: _or_none(float(row.function(whole)[0, at])) for row in rows}
        present = np.flatnonzero(np.isfinite(scored.targets[:, at]))
        if len(present) > MOST_SCATTER_POINTS:
            present = np.sort(np.random.default_rng(0).choice(present, MOST_SCATTER_POINTS, replace=False))
        ranges[name] = _range(scored.targets[:, at])
        scatter[name] = [_rounded(scored.targets[present, at]), _rounded(scored.outputs[present, at])]
    return {"per_column": per_column, "scatter": scatter, "range": ranges}


def _range(targets: NDArray[np.floating]) -> dict[str, float | None]:
    present = targets[np.isfinite(targets)].astype(np.float64)
    if not present.size:
        return {"min": None, "mean": None, "max": None}
    return dict(
        zip(("min", "mean", "max"), _rounded(np.array([present.min(), present.mean(), present.max()])), strict=True)
    )


def _describe_classes(scored: Scored, whole: Tally, classes: Sequence[str]) -> dict[str, Any]:
    names = [str(name) for name in classes] or [str(at) for at in range(scored.n_outputs)]
    details: dict[str, Any] = {"per_class": _per_class(whole, names)}
    if scored.kind != MULTILABEL and len(names) <= MOST_CLASSES_IN_CONFUSION:
        details["confusion"] = _confusion(scored)
    common = np.argsort(-whole.true[0], kind="stable")[:MOST_CURVES]
    shown = [1] if scored.kind == BINARY else sorted(int(at) for at in common)
    rows = {at: scored.known[:, at] for at in shown}
    curves = {names[at]: _curves(scored.outputs[rows[at], at], scored.true_labels[rows[at], at]) for at in shown}
    details["roc"] = {name: curve[0] for name, curve in curves.items() if curve}
    details["pr"] = {name: curve[1] for name, curve in curves.items() if curve}
    return details


def _confusion(scored: Scored) -> list[list[int]]:
    n = scored.n_outputs
    cells: list[int] = np.bincount(scored.targets * n + scored.outputs.argmax(axis=1), minlength=n * n).tolist()
    return [cells[start : start + n] for start in range(0, n * n, n)]


def _per_class(whole: Tally, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    hidden = np.full((1, 1), np.nan)  # two classes have one ranking, that of the positive class
    areas = [np.hstack([hidden, a]) if whole.is_binary else a for a in (whole.roc_auc, whole.pr_auc)]
    parts = {"precision": _precision(whole), "recall": _recall(whole), "f1": _f1(whole), "roc_auc": areas[0]}
    parts |= {"pr_auc": areas[1]}
    return {
        name: {part: _or_none(float(values[0, at])) for part, values in parts.items()}
        | {"support": int(whole.true[0, at])}
        for at, name in enumerate(names)
    }


def _curves(scores: NDArray[np.floating], is_positive: NDArray[np.bool_]) -> list[list[list[float]]]:
    """Return [[false positive rate, true positive rate], [recall, precision]]; empty when only one outcome occurs."""
    n_positive = int(is_positive.sum())
    if n_positive in (0, len(is_positive)):
        return []
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true_positives = np.append(0, np.cumsum(is_positive[order])[last_of_tie])
    called = np.append(0, last_of_tie + 1)
    recall = true_positives / n_positive
    false_rate = (called - true_positives) / (len(order) - n_positive)
    precision = divide(true_positives.astype(float), called.astype(float), otherwise=1.0)
    along_roc, along_pr = _thinned(recall + false_rate), _thinned(recall + called / len(order))
    roc = [_rounded(false_rate[along_roc]), _rounded(recall[along_roc])]
    return [roc, [_rounded(recall[along_pr]), _rounded(precision[along_pr])]]


def _thinned(along: Floats) -> Indices:
    """Pick at most 200 positions, evenly spread over a rising coordinate, first and last among them."""
    if len(along) <= MOST_CURVE_POINTS:
        return np.arange(len(along))
    return np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], MOST_CURVE_POINTS)))


def _rounded(values: NDArray[np.floating]) -> list[float]:
    """Five significant digits: enough for a plot, and a short file."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
