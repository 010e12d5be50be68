"""Baselines trained beside a run and compared with it, on the same sequences and the same resamples."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from plft.alphabet import ALPHABETS
from plft.baselines import BASELINES, FEWEST_ROWS, Baseline, NoTimeError, Problem, Trained, judged_rows, train_baseline
from plft.batching import INFERENCE_BUDGET, sorted_batches
from plft.dataset import build_dataset
from plft.encodings import Part
from plft.errors import PlftError
from plft.heads import mean_over_residues
from plft.labels import LabelSpace
from plft.memory import ran_out_of_memory
from plft.metrics import Evaluation, difference, evaluate
from plft.model import PLMTaskModel, run_batches
from plft.prediction import CHUNK_RESIDUES, choose_device, chunks
from plft.preparation import Prepared, Say
from plft.records import Record

SHARE_FOR_STATES = 0.6  # of the time that is left when the frozen backbone's turn comes; the rest is for fitting
TIMED = 16  # sequences on which its speed is measured
MOST_STATES = 50_000_000  # numbers kept of the hidden states of train: 200 MB, some copies of them for a while

Used = TypeVar("Used")


def beside(prepared: Prepared, evaluations: Mapping[str, Evaluation], say: Say) -> dict[str, Any]:
    """Train the baselines of a run and score them on the evaluated splits.

    evaluations: of the fine-tuned model, by split.  Returns the parts "baselines" and "baselines_left_out" of
    metrics.json; both are empty where the configuration asks for none.
    """
    settings = prepared.config.baselines
    if not settings.run or not evaluations:
        return {"baselines": {}, "baselines_left_out": {}}
    began = time.monotonic()
    say(f"training baselines beside it, for {settings.minutes:g} minutes at most")
    problem, parts = problem_of(prepared, evaluations)

    def judged(trained: Trained) -> dict[str, Any]:
        return scored(trained, problem, parts, evaluations)

    found, left_out = train_each(BASELINES.values(), problem, parts, prepared, judged, began)
    for title, reason in left_out.items():
        say(f"no {title} among the baselines: {reason}")
    return {"baselines": found, "baselines_left_out": left_out}


def train_each(
    rows: Iterable[Baseline],
    problem: Problem,
    parts: Mapping[str, Part],
    prepared: Prepared,
    use: Callable[[Trained], Used],
    began: float,
) -> tuple[dict[str, Used], dict[str, str]]:
    """Train those baselines that apply within the time of the configuration, from `began` on.

    Returns what `use` made of each, by name, and the reasons why others were left out, by title.
    """
    found: dict[str, Used] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        try:
            trained = train_one(row, problem, parts, prepared, began, 60 * prepared.config.baselines.minutes)
            if trained is not None:
                found[row.name] = use(trained)
        except (NoTimeError, PlftError, MemoryError, RuntimeError) as error:
            if not (isinstance(error, NoTimeError | PlftError) or ran_out_of_memory(error)):
                raise
            left_out[row.title_for(problem.task)] = "out of memory" if ran_out_of_memory(error) else str(error)
    return found, left_out


def problem_of(prepared: Prepared, asked: Collection[str]) -> tuple[Problem, dict[str, Part]]:
    """What the baselines learn from, and the parts asked about, by the name of their split."""
    records = {name: part for name, part in prepared.parts.items() if name in {"train", "valid", *asked}}
    parts = {name: part_of(each, prepared.labels) for name, each in records.items()}
    problem = Problem(
        labels=prepared.labels,
        alphabet=ALPHABETS[prepared.checkpoint.family.alphabet],
        train=parts["train"],
        valid=parts.get("valid"),
        metric=str(prepared.config.training.metric),
        class_weights=prepared.class_weights,
        n_asked=sum(len(records[name]) for name in asked),
        seed=prepared.config.training.seed,
    )
    return problem, {name: parts[name] for name in asked}


def part_of(records: Sequence[Record], labels: LabelSpace) -> Part:
    """Sequences, targets and weights of a split."""
    targets = [labels.encode(each, unseen="missing") for each in records]
    weights = np.array([1.0 if each.weight is None else each.weight for each in records])
    return Part([each.sequence for each in records], targets, weights)


def train_one(
    row: Baseline, problem: Problem, parts: Mapping[str, Part], prepared: Prepared, began: float, seconds: float
) -> Trained | None:
    """Train one baseline; None where it does not apply.  Raises NoTimeError."""
    note = ""
    if row.name == "frozen":
        problem, parts, note = with_states(problem, parts, prepared, began + seconds - time.monotonic())
    if not row.applies(problem):
        return None
    trained = train_baseline(row, problem, parts, began, seconds)
    return replace(trained, note=", ".join(each for each in (note, trained.note) if each))


def scored(
    trained: Trained, problem: Problem, parts: Mapping[str, Part], evaluations: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """What metrics.json says of a baseline."""
    splits = {}
    for name, part in parts.items():
        labels = problem.labels
        own = evaluate(labels.task, trained.outputs[name], part.targets, labels.classes, labels.columns)
        gain = difference(evaluations[name], own, problem.metric)
        metrics = {metric: each.to_json() for metric, each in own.metrics.items()}
        splits[name] = {"metrics": metrics, "difference": {"metric": problem.metric} | gain.to_json()}
    return {"title": trained.title, "settings": trained.note, "splits": splits}


# --- the frozen backbone


class States(nn.Module):
    """A head that hands on what the backbone says: of each residue, or their mean."""

    def __init__(self, per_residue: bool) -> None:
        super().__init__()
        self.per_residue = per_residue

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, positions, width) -> the same, or (batch, width)"""
        return hidden_states if self.per_residue else mean_over_residues(hidden_states, attention_mask.bool())


StatesOf = Callable[[Sequence[Record]], list[np.ndarray]]


@dataclass(frozen=True)
class LazyStates:
    """The hidden states of records, computed chunk by chunk whenever they are read."""

    states_of: StatesOf
    records: Sequence[Record]

    def __iter__(self) -> Iterator[np.ndarray]:
        for chunk in chunks(self.records, CHUNK_RESIDUES):
            yield from self.states_of(chunk)


def frozen_states(prepared: Prepared) -> tuple[StatesOf, int]:
    """A function from records to the hidden states of the backbone before it was tuned, and their width."""
    per_residue, checkpoint = prepared.task.is_residue, prepared.checkpoint
    backbone = checkpoint.load_backbone(seed=prepared.config.training.seed)
    model = PLMTaskModel(prepared.task, backbone, States(per_residue)).eval()
    choose_device(model)

    def states_of(records: Sequence[Record]) -> list[np.ndarray]:
        dataset = build_dataset(
            records,
            checkpoint.residue_tokenizer,
            None,
            is_residue_task=per_residue,
            max_residues=prepared.max_residues,
        )
        found: list[Any] = [None] * len(dataset)
        for indices, _, result in run_batches(model, dataset, sorted_batches(dataset.lengths, INFERENCE_BUDGET)):
            states = result.logits.float().cpu().numpy()
            for row, index in enumerate(indices):
                n_residues = len(dataset[index].residue_tokens)
                found[index] = states[row, :n_residues].copy() if per_residue else states[row]
        return dataset.per_record(found)

    return states_of, checkpoint.width


def with_states(
    problem: Problem, parts: Mapping[str, Part], prepared: Prepared, seconds: float
) -> tuple[Problem, dict[str, Part], str]:
    """Add hidden states: to train and valid as far as time allows, to the other parts in any case.

    seconds: what is left.  Returns problem, parts and what to say of it; raises NoTimeError where it is not enough.
    """
    if seconds <= 0:
        raise NoTimeError("the time for baselines was used up")
    states_of, width = frozen_states(prepared)
    order = np.random.default_rng(problem.seed).permutation(len(prepared.parts["train"])).tolist()
    shuffled = [prepared.parts["train"][row] for row in order]
    each = seconds_per_residue(states_of, shuffled[:TIMED])
    asking = [*parts, "valid"] if problem.task.is_residue else {*parts, "valid"}  # residues of valid are read twice
    needed = each * sum(len(record.sequence) for name in asking for record in prepared.parts.get(name, ()))
    total = np.cumsum([len(record.sequence) for record in shuffled])
    n = int(np.searchsorted(each * total, SHARE_FOR_STATES * seconds - needed, side="right"))
    numbers = total * width if problem.task.is_residue else width * np.arange(1, len(total) + 1)
    n = min(n, max(1, int(np.searchsorted(numbers, MOST_STATES, side="right"))))
    if n < min(FEWEST_ROWS, len(order)) and not (problem.task.is_residue and n and total[n - 1] >= FEWEST_ROWS):
        raise NoTimeError(f"its hidden states take {needed + each * total[-1]:,.0f} s; raise baselines.minutes")
    rows = sorted(order[:n])
    train = in_memory(problem.train, prepared.parts["train"], rows, states_of)
    if problem.task.is_residue:
        train = replace(train, hidden=np.concatenate(list(train.hidden or ())))
    asked = {name: replace(part, hidden=LazyStates(states_of, prepared.parts[name])) for name, part in parts.items()}
    valid = problem.valid
    if valid is not None and problem.task.is_residue:
        valid = in_memory(valid, prepared.parts["valid"], judged_rows(problem, valid).tolist(), states_of)
    elif valid is not None:  # one vector per sequence can be kept: to choose settings with, and to be scored
        whole = in_memory(valid, prepared.parts["valid"], range(len(valid.sequences)), states_of)
        asked |= {"valid": replace(asked["valid"], hidden=whole.hidden)} if "valid" in asked else {}
        valid = whole.take(judged_rows(problem, whole))
    said = f"states of {n:,} of {len(order):,} training sequences" if n < len(order) else ""
    return replace(problem, train=train, valid=valid), asked, said


def in_memory(part: Part, records: Sequence[Record], rows: Sequence[int], states_of: StatesOf) -> Part:
    """Some sequences of a part with their hidden states."""
    return replace(part.take(rows), hidden=list(LazyStates(states_of, [records[row] for row in rows])))


def seconds_per_residue(states_of: StatesOf, records: Sequence[Record]) -> float:
    """Measure the backbone on a few sequences, once before to warm up."""
    states_of(records[:1])
    start = time.perf_counter()
    states_of(records)
    return (time.perf_counter() - start) / max(sum(len(each.sequence) for each in records), 1)
