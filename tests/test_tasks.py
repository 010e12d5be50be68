"""Losses, activations and weights, against torch and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from plft.config import RunConfig
from plft.labels import LabelSpace, TaskType
from plft.metrics import METRICS
from plft.tasks import TASKS, balanced_class_weights, target_weights, weighted_loss

NAN = float("nan")


def loss(task: str, logits: torch.Tensor, labels: torch.Tensor, **weights: torch.Tensor | None) -> torch.Tensor:
    given = {"sequence_weights": None, "class_weights": None} | weights
    return weighted_loss(TASKS[task], logits, labels, target_weights(labels, **given))


def test_sequence_classes_are_learned_by_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, -100, 1, 1, 0])
    torch.testing.assert_close(
        loss("seq_classification", logits, labels), functional.cross_entropy(logits, labels, ignore_index=-100)
    )


def test_residue_classes_are_averaged_over_residues_not_over_padding() -> None:
    logits, labels = torch.randn(2, 4, 3), torch.tensor([[0, 1, 2, -100], [1, -100, -100, -100]])
    torch.testing.assert_close(
        loss("token_classification", logits, labels), functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    )


def test_numbers_are_learned_by_the_squared_error_over_known_values() -> None:
    logits, labels = torch.randn(4, 2), torch.tensor([[1.0, NAN], [0.0, 2.0], [NAN, NAN], [3.0, 4.0]])
    known = ~labels.isnan()
    torch.testing.assert_close(
        loss("seq_regression", logits, labels), functional.mse_loss(logits[known], labels[known])
    )


def test_residue_numbers_leave_out_padding_and_missing_values() -> None:
    logits, labels = torch.randn(2, 3, 1), torch.tensor([[1.0, NAN, 2.0], [0.5, NAN, NAN]])
    known = ~labels.isnan()
    torch.testing.assert_close(
        loss("token_regression", logits, labels), functional.mse_loss(logits[..., 0][known], labels[known])
    )


def test_each_class_of_a_multi_label_is_a_yes_or_no() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([[1.0, 0, 0, 1], [NAN] * 4, [0, 0, 0, 0]])
    expected = functional.binary_cross_entropy_with_logits(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(loss("seq_multilabel", logits, labels), expected)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_batch_without_any_label_costs_nothing_and_has_no_gradient(task: str) -> None:
    kind = TaskType(task)
    shape = (2, 3, 2) if kind.is_residue else (2, 2)
    shape = (2, 3, 1) if task == "token_regression" else shape
    logits = torch.randn(shape, requires_grad=True)
    labels_shape = shape[:-1] if kind.is_residue or kind is TaskType.SEQ_CLASSIFICATION else shape
    labels = torch.full(labels_shape, -100) if kind.is_classification else torch.full(labels_shape, NAN)
    value = loss(task, logits, labels)
    value.backward()
    assert value.item() == 0.0
    assert logits.grad.abs().sum() == 0.0


def test_class_weights_are_torchs() -> None:
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 2, -100, 1, 1]), torch.tensor([0.1, 2.0, 5.0])
    torch.testing.assert_close(
        loss("seq_classification", logits, labels, class_weights=weights),
        functional.cross_entropy(logits, labels, weight=weights),
    )


def test_class_weights_of_a_multi_label_weigh_its_columns() -> None:
    logits, labels, weights = torch.randn(3, 2), torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([3.0, 1.0])
    each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    torch.testing.assert_close(
        loss("seq_multilabel", logits, labels, class_weights=weights), (each * weights).sum() / (3 * weights).sum()
    )


def test_sequence_weights_count_a_sequence_more_than_once() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    twice = functional.cross_entropy(logits[[0, 0, 0, 1]], labels[[0, 0, 0, 1]])
    weights = torch.tensor([3.0, 1.0])
    torch.testing.assert_close(loss("seq_classification", logits, labels, sequence_weights=weights), twice)


def test_sequence_weights_reach_every_residue() -> None:
    labels = torch.tensor([[0, 1, -100], [1, -100, -100]])
    weights = target_weights(labels, torch.tensor([2.0, 0.5]), None)
    assert weights.tolist() == [[2.0, 2.0, 0.0], [0.5, 0.0, 0.0]]


def test_a_total_given_from_outside_makes_parts_add_up() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, -100, 0])
    weights = target_weights(labels, None, None)
    whole = weighted_loss(TASKS["seq_classification"], logits, labels, weights)
    parts = [
        weighted_loss(TASKS["seq_classification"], logits[at], labels[at], weights[at], total_weight=5.0)
        for at in (slice(0, 1), slice(1, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_balanced_weights_are_scikit_learns() -> None:
    targets = np.array([0] * 7 + [1] * 2 + [2])
    labels = LabelSpace(TaskType.SEQ_CLASSIFICATION, ("a", "b", "c"))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(balanced_class_weights(labels, [7, 2, 1]), expected)
    assert balanced_class_weights(labels, [1, 1, 0])[2] == 0.0


@pytest.mark.parametrize("task", list(TASKS))
def test_outputs_are_probabilities_or_the_numbers_themselves(task: str) -> None:
    logits = torch.randn(4, 3)
    expected = {"classification": logits.softmax(-1), "multilabel": logits.sigmoid()}.get(task.split("_")[1], logits)
    torch.testing.assert_close(TASKS[task].activate(logits), expected)
    assert TASKS[task].activate(logits.bfloat16()).dtype is torch.float32


def test_the_table_holds_every_task_with_a_metric_that_exists() -> None:
    assert set(TASKS) == {each.value for each in TaskType}
    for name, row in TASKS.items():
        assert row.type.value == name
        assert row.main_metric in METRICS


def test_tasks_in_the_configuration_are_those_of_the_table() -> None:
    assert set(RunConfig.model_fields["task"].annotation.__args__) == {"auto", *TASKS}
