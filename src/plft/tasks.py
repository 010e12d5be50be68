"""How a label is learned and turned into an output: one row per task.

Reading labels needs no torch and lives in `plft.labels`; here are the loss, the activation and the metric that decides
which checkpoint is best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from plft.labels import LabelSpace, TaskType

NO_CLASS = -100  # torch's own ignore_index; a missing number is NaN


@dataclass(frozen=True)
class Task:
    """One row of the task table.

    loss: (logits, labels) -> unreduced loss in the shape of the labels, finite also where a label is missing.
    activate: logits -> probabilities or values in standard units.
    main_metric: name in `metrics.METRICS`; it chooses the best checkpoint and drives early stopping.
    """

    type: TaskType
    title: str
    loss: Callable[[Tensor, Tensor], Tensor]
    activate: Callable[[Tensor], Tensor]
    main_metric: str


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy per target. logits: (..., classes) float.  labels: (...) long, -100 = missing (its loss is 0)."""
    flat = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=NO_CLASS, reduction="none")
    return flat.view(labels.shape)


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error per target. logits: (..., 1) for labels (...), or the labels' own shape; NaN labels give 0."""
    known = torch.nan_to_num(labels)
    return (logits.float().reshape(labels.shape) - known).square() * ~labels.isnan()


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy per class. logits, labels: (batch, classes) float; NaN labels give 0."""
    known = torch.nan_to_num(labels)
    return F.binary_cross_entropy_with_logits(logits.float(), known, reduction="none") * ~labels.isnan()


def identity(logits: Tensor) -> Tensor:
    """Return the logits as float32; regression has no activation."""
    return logits.float()


def softmax(logits: Tensor) -> Tensor:
    """Class probabilities over the last axis, in float32."""
    return logits.float().softmax(-1)


def sigmoid(logits: Tensor) -> Tensor:
    """Independent probabilities, in float32."""
    return logits.float().sigmoid()


TASKS: dict[str, Task] = {
    row.type.value: row
    for row in (
        Task(TaskType.SEQ_CLASSIFICATION, "one class per sequence", cross_entropy, softmax, "mcc"),
        Task(TaskType.SEQ_REGRESSION, "numbers per sequence", squared_error, identity, "spearman"),
        Task(TaskType.TOKEN_CLASSIFICATION, "one class per residue", cross_entropy, softmax, "accuracy"),
        Task(TaskType.TOKEN_REGRESSION, "one number per residue", squared_error, identity, "spearman"),
        Task(
            TaskType.SEQ_MULTILABEL,
            "any number of classes per sequence",
            binary_cross_entropy,
            sigmoid,
            "f1_micro",
        ),
    )
}


def target_weights(labels: Tensor, sequence_weights: Tensor | None, class_weights: Tensor | None) -> Tensor:
    """How much each target counts in the loss: 0 where the label is missing.

    labels: (batch, ...).  sequence_weights: (batch,) or None.  class_weights: (classes,) or None; for class labels they
    are looked up, for multi-label targets they weigh the columns.  Returns float32 in the shape of the labels.
    """
    missing = labels.isnan() if labels.is_floating_point() else labels == NO_CLASS
    weights = (~missing).float()
    if class_weights is not None:
        per_target = class_weights if labels.is_floating_point() else class_weights[labels.masked_fill(missing, 0)]
        weights = weights * per_target
    if sequence_weights is not None:
        weights = weights * sequence_weights.view(-1, *[1] * (labels.dim() - 1))
    return weights


def weighted_loss(
    task: Task, logits: Tensor, labels: Tensor, weights: Tensor, total_weight: Tensor | float | None = None
) -> Tensor:
    """Weighted mean loss over the known targets; 0 (with a gradient of 0) when there are none.

    total_weight: the sum of weights of everything that shares one optimiser step (several micro-batches, several
    processes); None means this batch alone.  Dividing by it makes accumulation and several processes exact.
    """
    total = weights.sum() if total_weight is None else torch.as_tensor(total_weight, device=logits.device)
    return (task.loss(logits, labels) * weights).sum() / total.clamp(min=1e-12)


def balanced_class_weights(labels: LabelSpace, counts: list[int]) -> list[float]:
    """Weights inversely proportional to class frequency, n / (classes * count), as scikit-learn's "balanced".

    counts: training targets per class, in the order of `labels.classes`; a class without targets gets 0.
    """
    total = sum(counts)
    return [total / (len(labels.classes) * count) if count else 0.0 for count in counts]
