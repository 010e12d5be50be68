"""What a model without a neural network makes of the same data, trained within a time budget. TABLE: BASELINES.

A baseline learns from train, chooses its settings on valid (or by cross-validation within train where valid is small),
and answers for any part in the shape that `metrics.evaluate` takes. It is never shown a target of another part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plft import homology, kmers
from plft.alphabet import Alphabet
from plft.encodings import WINDOW, Features, Part, composition, hidden_states, kmer_profile, one_hot, window
from plft.labels import IGNORED_CLASS, LabelSpace, TaskType, is_known
from plft.linear import PENALTIES, Linear, Matrix, fit, path, work
from plft.metrics import METRICS, point

Outputs = list[NDArray[Any]]
Predict = Callable[[Part], Outputs]

ENOUGH_TO_CHOOSE = 100  # labelled valid sequences (residues: MOST_JUDGED or all); with fewer, folds of train choose
FOLDS = 5
FEWEST_ROWS = 500  # a baseline that could learn only from fewer than these says little, and is left out
MOST_JUDGED = 50_000  # residues of valid on which settings are judged
ITEMS_AT_ONCE = 100_000
LENGTHS_AGREE = 0.8  # one-hot: the shortest is at least this share of the longest, among 99 % of the sequences
KMER_LENGTHS = {"protein": (2, 3), "dna": (3, 4, 5, 6), "rna": (3, 4, 5, 6)}
FAINTEST = 0.01  # identity from which on a training sequence is similar at all
PAIRS_PER_SECOND = 1e8  # k-mers shared by a pair, counted by kmers.best
ALIGNMENT_SECONDS, CELL_SECONDS = 2e-5, 1.5e-9  # of one alignment with MMseqs2: at least, and per cell


@dataclass(frozen=True)
class Problem:
    """What a baseline is to learn.

    metric: name in METRICS that chooses settings.  n_asked: sequences that will be predicted, which costs time too.
    seconds: this baseline's time; deadline: on `time.monotonic`, when no further setting is tried.
    """

    labels: LabelSpace
    alphabet: Alphabet
    train: Part
    valid: Part | None
    metric: str
    class_weights: Sequence[float] | None = None
    n_asked: int = 0
    seed: int = 0
    seconds: float = 60.0
    deadline: float = float("inf")

    @property
    def task(self) -> TaskType:
        """The task of the labels."""
        return self.labels.task

    def in_time(self) -> bool:
        """Whether another setting may be tried."""
        return time.monotonic() < self.deadline

    def score(self, outputs: Outputs, targets: Sequence[NDArray[Any]]) -> float:
        """Return the metric with its sign turned so that higher is better; -inf where undefined."""
        value = point(self.task, outputs, targets)[self.metric]
        value = value if METRICS[self.metric].higher_is_better else -value
        return float(value) if np.isfinite(value) else -np.inf


@dataclass(frozen=True)
class Fitted:
    """A trained baseline.  predict: a part -> one output per sequence.  note: its settings, for the reader."""

    predict: Predict
    note: str = ""


class NoTimeError(Exception):
    """A baseline that does not fit its share of the time budget; the message says why."""


@dataclass(frozen=True)
class Baseline:
    """One row.  title: {model} stands for ridge or logistic regression.  share: of the time budget, at most.

    applies: whether it makes sense for a problem.  fit: raises NoTimeError where there is too little time.
    """

    name: str
    title: str
    share: float
    applies: Callable[[Problem], bool]
    fit: Callable[[Problem], Fitted]

    def title_for(self, task: TaskType) -> str:
        """The title with the kind of regression in it."""
        return self.title.format(
            model="ridge regression" if task.is_regression else "logistic regression",
            constant="training mean" if task.is_regression else "majority class",
        )


# --- items: sequences, or residues in residue tasks


def _flat(problem: Problem, part: Part) -> NDArray[Any]:
    """Return the targets of all items as `linear.fit` takes them."""
    task = problem.task
    if task.is_classification:
        return np.concatenate([np.atleast_1d(target) for target in part.targets]).astype(np.int64)
    width = problem.labels.n_outputs
    values = np.concatenate([np.reshape(target, (-1, width)) for target in part.targets])
    if task.is_multilabel:
        return np.where(np.isfinite(values), values, IGNORED_CLASS).astype(np.int64)
    return values.astype(np.float64)


def _item_weights(problem: Problem, part: Part, targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return the weight of each item: of its sequence times that of its class, 0 where nothing of it is known."""
    sizes = [len(sequence) for sequence in part.sequences] if problem.task.is_residue else 1
    weights = np.repeat(np.asarray(part.weights, dtype=np.float64), sizes)
    there = is_known(targets)
    if problem.class_weights is not None and targets.ndim == 1:
        weights = weights * np.asarray(problem.class_weights)[np.where(there, targets, 0)]
    return np.where(there if there.ndim == 1 else there.any(axis=1), weights, 0.0)


def _per_sequence(problem: Problem, outputs: NDArray[Any], sequences: Sequence[str]) -> Outputs:
    """Cut (items, outputs) into the outputs of each sequence."""
    if not problem.task.is_residue:
        return list(outputs)
    if problem.task.is_regression:
        outputs = outputs[:, 0]
    return np.split(outputs, np.cumsum([len(sequence) for sequence in sequences])[:-1])


def _chunks(problem: Problem, part: Part) -> Iterator[Part]:
    """Cut a part so that the features of one piece fit into memory; hidden states are read along."""
    hidden = iter(part.hidden) if part.hidden is not None else None
    start = size = 0
    for at, sequence in enumerate(part.sequences):
        size += len(sequence) if problem.task.is_residue else 1
        if size >= ITEMS_AT_ONCE or at + 1 == len(part.sequences):
            piece = Part(part.sequences[start : at + 1])
            if hidden is not None:
                piece = replace(piece, hidden=[next(hidden) for _ in piece.sequences])
            yield piece
            start, size = at + 1, 0


def standardised(features: Features, train: Part) -> Features:
    """Features less their mean in train, over their deviation; a constant one becomes 0."""
    seen = features(train, None)
    mean, deviation = seen.mean(axis=0), seen.std(axis=0)
    scale = np.where(deviation > 1e-12, deviation, np.inf)
    return lambda part, rows: (features(part, rows) - mean) / scale


# --- linear models, settings chosen


@dataclass(frozen=True)
class Setting:
    """Features with the words that tell them from others of the same baseline."""

    features: Features
    words: str = ""


def linear(problem: Problem, settings: Callable[[Problem], Iterable[Setting]]) -> Fitted:
    """Fit a linear model for each setting and penalty, and keep the best by the metric."""
    rows, targets, weights = _training_items(problem)
    judge = _judge(problem)
    options = list(settings(problem))
    most, seconds = len(rows), problem.seconds / len(options)
    best: tuple[float, Setting, float] | None = None
    reason = "the time for baselines was used up"
    for setting in options:
        kept = _affordable(setting, problem, rows, seconds / judge.repeats)
        if len(kept) < min(len(rows), FEWEST_ROWS):
            reason = f"its time holds {len(kept):,} of {len(rows):,} training items; raise baselines.minutes"
            break  # the settings that follow cost more
        matrix = setting.features(problem.train, kept)
        score = judge.scorer(setting, matrix, targets[kept], weights[kept], kept)
        for penalty, value in path(score, problem.in_time):
            if best is None or value > best[0]:
                best, most = (value, setting, penalty), len(kept)
    if best is None:
        raise NoTimeError(reason)
    _, setting, penalty = best
    kept = _sample(rows, most, problem.seed)
    model = fit(setting.features(problem.train, kept), targets[kept], weights[kept], problem.labels.n_outputs, penalty)
    said = [setting.words, f"penalty {penalty:g}", judge.words, _sampled(len(kept), len(rows), problem)]
    return Fitted(partial(_predict, problem, setting.features, model), ", ".join(each for each in said if each))


def _sampled(n: int, whole: int, problem: Problem) -> str:
    unit = "residues" if problem.task.is_residue else "sequences"
    return f"trained on {n:,} of {whole:,} {unit}" if n < whole else ""


def _training_items(problem: Problem) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float64]]:
    """Return the items of train that count, and targets and weights of all."""
    targets = _flat(problem, problem.train)
    weights = _item_weights(problem, problem.train, targets)
    return np.flatnonzero(weights > 0), targets, weights


def _sample(rows: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Return n of the rows drawn at random, in their order; all where there are no more."""
    if n >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))


def _affordable(setting: Setting, problem: Problem, rows: NDArray[np.int64], seconds: float) -> NDArray[np.int64]:
    """Return as many rows as can be fitted with every penalty in so many seconds, by counting, not by the clock."""
    probe = _sample(rows, FEWEST_ROWS, problem.seed)
    each = work(setting.features(problem.train, probe), problem.labels.n_outputs) / max(len(probe), 1)
    return _sample(rows, int(seconds / max(each * len(PENALTIES), 1e-12)), problem.seed)


def _predict(problem: Problem, features: Features, model: Linear, part: Part) -> Outputs:
    found: Outputs = []
    for piece in _chunks(problem, part):
        found += _per_sequence(problem, model.outputs(features(piece, None)), piece.sequences)
    return found


# --- judging settings


@dataclass(frozen=True)
class ByValid:
    """Settings are judged on the validation part."""

    problem: Problem
    valid: Part
    words: str = "chosen on valid"
    repeats: int = 1

    def scorer(
        self, setting: Setting, matrix: Matrix, targets: NDArray[Any], weights: NDArray[Any], rows: NDArray[Any]
    ) -> Callable[[float], float]:
        """Return a function that fits to the train items with a penalty and scores on valid."""
        pieces = [(setting.features(piece, None), piece.sequences) for piece in _chunks(self.problem, self.valid)]

        def score(penalty: float) -> float:
            model = fit(matrix, targets, weights, self.problem.labels.n_outputs, penalty)
            answers = [_per_sequence(self.problem, model.outputs(asked), sequences) for asked, sequences in pieces]
            return self.problem.score([each for answer in answers for each in answer], self.valid.targets)

        return score


@dataclass(frozen=True)
class ByFolds:
    """Settings are judged by cross-validation within train; folds are drawn by sequence.

    fold: (items,) the fold of every item of train.
    """

    problem: Problem
    fold: NDArray[np.int64]
    words: str = "chosen by cross-validation within train"
    repeats: int = FOLDS

    def scorer(
        self, setting: Setting, matrix: Matrix, targets: NDArray[Any], weights: NDArray[Any], rows: NDArray[Any]
    ) -> Callable[[float], float]:
        """Return a function that predicts each fold from the others with a penalty and scores all together."""
        fold, width = self.fold[rows], self.problem.labels.n_outputs

        def score(penalty: float) -> float:
            outputs = np.zeros((len(rows), width))
            for each in np.unique(fold):
                others = np.where(fold == each, 0.0, weights)
                if not others.any():
                    return -np.inf
                outputs[fold == each] = fit(matrix, targets, others, width, penalty).outputs(matrix[fold == each])
            return self.problem.score(*self._as_scored(outputs, targets))

        return score

    def _as_scored(self, outputs: NDArray[Any], targets: NDArray[Any]) -> tuple[Outputs, Outputs]:
        """Give items the shape of targets: for the metric each residue may be a sequence of its own."""
        task = self.problem.task
        if task.is_multilabel:
            return list(outputs), list(np.where(targets >= 0, targets, np.nan))
        if task is TaskType.TOKEN_REGRESSION:
            return [outputs[:, 0]], [targets[:, 0]]
        return ([outputs], [targets]) if task.is_residue else (list(outputs), list(targets))


def _judge(problem: Problem) -> ByValid | ByFolds:
    valid = problem.valid
    if valid is not None and len(valid.targets) and _is_enough(problem, valid):
        return ByValid(problem, valid.take(judged_rows(problem, valid)))
    sequences = problem.train.sequences
    fold = np.random.default_rng(problem.seed).permutation(len(sequences)) % FOLDS
    sizes = [len(sequence) for sequence in sequences] if problem.task.is_residue else 1
    return ByFolds(problem, np.repeat(fold, sizes))


def _is_enough(problem: Problem, valid: Part) -> bool:
    """Whether settings can be chosen on valid: it has many sequences, or many residues that are judged."""
    labelled = [sequence for sequence, known in zip(valid.sequences, valid.is_known, strict=True) if known]
    residues = sum(map(len, labelled)) if problem.task.is_residue else 0
    return valid.is_known.sum() >= ENOUGH_TO_CHOOSE or residues >= MOST_JUDGED // 2


def judged_rows(problem: Problem, valid: Part) -> NDArray[np.int64]:
    """Return the labelled sequences of valid, in residue tasks as many as hold MOST_JUDGED residues."""
    rows = np.flatnonzero(valid.is_known)
    if not problem.task.is_residue or not len(rows):
        return rows
    order = np.random.default_rng(problem.seed).permutation(rows)
    total = np.cumsum([len(valid.sequences[row]) for row in order])
    return np.sort(order[: max(1, int(np.searchsorted(total, MOST_JUDGED)))])


# --- the rows


def constant(problem: Problem) -> Fitted:
    """Answer every item alike: shares of the classes, or the mean, in train."""
    rows, targets, weights = _training_items(replace(problem, class_weights=None))  # as often as they are
    return Fitted(partial(_repeat, problem, _prior(problem, targets[rows], weights[rows])))


def _prior(problem: Problem, targets: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted shares of the classes or means of the columns: (outputs,)."""
    if problem.task.is_classification:
        counted = np.bincount(targets, weights, problem.labels.n_outputs)
        return np.asarray(counted / counted.sum())
    present = is_known(targets)
    total = (present * weights[:, None]).sum(axis=0)
    summed = (np.where(present, targets, 0) * weights[:, None]).sum(axis=0)
    return np.divide(summed, total, out=np.zeros_like(total), where=total > 0)


def _repeat(problem: Problem, prior: NDArray[np.float64], part: Part) -> Outputs:
    if not problem.task.is_residue:
        return [prior] * len(part.sequences)
    shape = prior[0] if problem.task.is_regression else prior
    return [np.broadcast_to(shape, (len(sequence), *np.shape(shape))) for sequence in part.sequences]


def neighbour(problem: Problem) -> Fitted:
    """Answer with the label of the most similar training sequence; where none is similar, as `constant` does.

    Probabilities lean to that label with the identity i: half of it from i = 0 on, all of it at i = 1, the rest is the
    share of the classes; so they rank, and the label always wins.
    """
    rows, targets, weights = _training_items(replace(problem, class_weights=None))
    rows = _searchable(problem, rows)
    sequences = [problem.train.sequences[row] for row in rows]
    prior = _prior(problem, targets[weights > 0], weights[weights > 0])
    labels = targets[rows]
    if problem.task.is_classification:
        labels = np.eye(problem.labels.n_outputs)[labels]
    labels = np.where(is_known(labels), labels, prior)  # of several columns some may be missing

    is_aligned = _can_align(problem, rows)

    def predict(part: Part) -> Outputs:
        identity, target = _nearest(part.sequences, sequences, problem.alphabet, is_aligned)
        has_one = (target >= 0)[:, None]
        share = np.ones((len(has_one), 1)) if problem.task.is_regression else 0.5 + identity[:, None] / 2
        return list(np.where(has_one, share * labels[target] + (1 - share) * prior, prior))

    way = "by alignment, else by shared k-mers" if is_aligned else "by shared k-mers, which is weaker than alignment"
    said = [way, _sampled(len(rows), int((weights > 0).sum()), problem)]
    return Fitted(predict, ", ".join(each for each in said if each))


def _nearest(
    queries: Sequence[str], targets: Sequence[str], alphabet: Alphabet, is_aligned: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return identity and position of the most similar target of each query, 0 and -1 where there is none.

    Where an alignment finds none, or none is made, shared k-mers may still find one.
    """
    identity, target = np.zeros(len(queries)), np.full(len(queries), -1, dtype=np.int64)
    if is_aligned:
        found = homology.nearest(queries, targets, alphabet)
        identity, target = found.identity.copy(), found.target.copy()
    left = np.flatnonzero(target < 0)
    asked, held = [queries[row] for row in left.tolist()], list(targets)
    if alphabet.name == "rna":
        asked, held = ([each.replace("U", "T") for each in some] for some in (asked, held))
    query, at, estimated = kmers.best(asked, held, alphabet, FAINTEST, homology.COVERAGE)
    identity[left[query]], target[left[query]] = estimated, at
    return identity, target


def _can_align(problem: Problem, rows: NDArray[np.int64]) -> bool:
    """Whether MMseqs2 is at hand and aligns what will be asked in time."""
    if homology.find_mmseqs() is None:
        return False
    length = float(np.mean([len(problem.train.sequences[row]) for row in rows]))
    alignments = problem.n_asked * min(len(rows), homology.THOROUGH.most_targets)
    return alignments * (ALIGNMENT_SECONDS + CELL_SECONDS * length**2) <= problem.seconds


def _searchable(problem: Problem, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the training sequences that can be compared by k-mers in time."""
    probe = _sample(rows, FEWEST_ROWS, problem.seed)
    size = kmers.K[problem.alphabet.name]
    holders = kmers.counts([problem.train.sequences[row] for row in probe], problem.alphabet, size).sign().sum(0)
    shared = float(np.square(np.asarray(holders)).sum()) / len(probe) ** 2  # k-mers that two of them share
    n = int(problem.seconds * PAIRS_PER_SECOND / max(problem.n_asked * shared, 1e-9))
    if n < min(len(rows), FEWEST_ROWS):
        raise NoTimeError(f"comparing {problem.n_asked:,} sequences with {len(rows):,} takes too long")
    return _sample(rows, n, problem.seed)


def _composition_settings(problem: Problem) -> list[Setting]:
    return [Setting(standardised(partial(composition, alphabet=problem.alphabet), problem.train))]


def _kmer_settings(problem: Problem) -> list[Setting]:
    lengths = KMER_LENGTHS[problem.alphabet.name]
    return [Setting(partial(kmer_profile, alphabet=problem.alphabet, k=k), f"k up to {k}") for k in lengths]


def _one_hot_settings(problem: Problem) -> list[Setting]:
    longest = max(len(sequence) for sequence in problem.train.sequences)
    return [Setting(partial(one_hot, alphabet=problem.alphabet, length=longest))]


def _window_settings(problem: Problem) -> list[Setting]:
    return [Setting(partial(window, alphabet=problem.alphabet), f"{WINDOW} residues")]


def _hidden_settings(problem: Problem) -> list[Setting]:
    return [Setting(standardised(hidden_states, problem.train))]


def lengths_agree(problem: Problem) -> bool:
    """Whether positions can be compared: 99 % of the training sequences are at least 0.8 times as long as the longest.

    The positions of a shorter one are counted from its start.
    """
    lengths = np.array([len(sequence) for sequence in problem.train.sequences])
    return bool(np.mean(lengths >= LENGTHS_AGREE * lengths.max()) >= 0.99)


def _of_sequences(problem: Problem) -> bool:
    return not problem.task.is_residue


BASELINES: dict[str, Baseline] = {
    row.name: row
    for row in (
        Baseline("constant", "{constant}", 1.0, lambda problem: True, constant),
        Baseline(
            "composition",
            "{model} on composition and length",
            0.2,
            _of_sequences,
            partial(linear, settings=_composition_settings),
        ),
        Baseline(
            "one_hot",
            "one-hot {model}",
            0.3,
            lambda problem: _of_sequences(problem) and lengths_agree(problem),
            partial(linear, settings=_one_hot_settings),
        ),
        Baseline("kmers", "k-mer {model}", 0.6, _of_sequences, partial(linear, settings=_kmer_settings)),
        Baseline(
            "window",
            "{model} on a window of residues",
            0.5,
            lambda problem: problem.task.is_residue,
            partial(linear, settings=_window_settings),
        ),
        Baseline("neighbour", "nearest training sequence", 0.3, _of_sequences, neighbour),
        Baseline(
            "frozen",
            "frozen backbone with {model}",
            0.4,
            lambda problem: problem.train.hidden is not None,
            partial(linear, settings=_hidden_settings),
        ),
    )
}


@dataclass(frozen=True)
class Trained:
    """A baseline that was trained: its row, title and note, and its outputs for each part asked about."""

    row: Baseline
    title: str
    note: str
    outputs: dict[str, Outputs]


def train_baseline(row: Baseline, problem: Problem, parts: Mapping[str, Part], began: float, seconds: float) -> Trained:
    """Train one baseline and let it answer for the parts.

    began, seconds: when the time budget of all baselines began on `time.monotonic`, and how long it lasts.
    Raises NoTimeError.  Only train and valid of the problem are learned from; of parts only the sequences are read.
    """
    left = began + seconds - time.monotonic()
    if left <= 0:
        raise NoTimeError("the time for baselines was used up")
    problem = replace(problem, seconds=row.share * seconds, deadline=began + seconds)
    fitted = row.fit(problem)
    asked = {name: Part(part.sequences, hidden=part.hidden) for name, part in parts.items()}
    outputs = {name: fitted.predict(part) for name, part in asked.items()}
    return Trained(row, row.title_for(problem.task), fitted.note, outputs)
