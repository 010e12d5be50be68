"""The model around backbone and head, and what is kept of it."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from fakes import ReadsTokens, Unchanged
from grid import built
from plft.batching import collate
from plft.dataset import build_dataset
from plft.errors import PlftError
from plft.heads import MLPHead
from plft.labels import LabelSpace, TaskType
from plft.model import (
    PLMTaskModel,
    infer,
    layer_classes,
    load_trained_state,
    outputs_of,
    per_residue,
    run_batches,
    trained_state,
)
from plft.records import Record


def batch_of(dataset, rows=None):
    examples = list(dataset) if rows is None else [dataset[at] for at in rows]
    return collate(examples, dataset.labels, dataset.pad_token_id, dataset.is_residue_task)


def test_each_residue_gets_the_state_of_its_token() -> None:
    hidden = torch.arange(8.0).view(1, 4, 2)
    gathered = per_residue(hidden, torch.tensor([[1, 1, 3, -1]]))
    assert gathered[0, :3].tolist() == [[2.0, 3.0], [2.0, 3.0], [6.0, 7.0]]


def test_without_masks_the_head_sees_every_attended_token() -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    model.eval()
    batch = {name: each for name, each in batch_of(dataset).items() if name in ("input_ids", "attention_mask")}
    hidden = model.backbone(**batch).last_hidden_state
    expected = model.head(hidden, attention_mask=batch["attention_mask"])
    torch.testing.assert_close(model(**batch).logits, expected)


def test_special_tokens_do_not_count_in_the_pool() -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    model.eval()
    batch = batch_of(dataset, [0])
    hidden = model.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    torch.testing.assert_close(model(**batch).logits, model.head(hidden[:, 1:-1]))


def test_a_backbone_can_be_named_or_given_and_frozen() -> None:
    def a_model(**options: object) -> PLMTaskModel:
        return PLMTaskModel("seq_regression", "scratch:tiny-esm2", MLPHead(32, 16, 1), **options)

    assert all(each.requires_grad for each in a_model().backbone.parameters())
    frozen = a_model(freeze_backbone=True)
    assert not any(each.requires_grad for each in frozen.backbone.parameters())
    assert all(each.requires_grad for each in frozen.head.parameters())
    backbone = tiny.checkpoint("esm2").load_backbone()
    assert PLMTaskModel(TaskType.SEQ_REGRESSION, backbone, MLPHead(32, 16, 1)).backbone is backbone


def test_the_layers_to_shard_are_those_the_model_has() -> None:
    assert layer_classes(tiny.checkpoint("esm2").load_backbone()) == ["EsmEmbeddings", "EsmLayer"]
    assert layer_classes(tiny.checkpoint("generic").load_backbone()) == ["ElectraLayer"], "it names none itself"


# --- keeping weights


def test_what_is_kept_is_what_trained_and_the_head() -> None:
    model, _, _ = built("esm2", "seq_classification", "lora")
    names = set(trained_state(model))
    assert all(".lora_" in name or name.startswith("head.") for name in names)
    assert {name for name, each in model.named_parameters() if each.requires_grad} == names


def test_buffers_of_a_head_are_kept_too() -> None:
    head = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    model = PLMTaskModel("seq_regression", tiny.checkpoint("esm2").load_backbone(), head, freeze_backbone=True)
    assert "head.0.running_mean" in trained_state(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.mlp.1.weight"), "weight 'head.mlp.1.weight' is missing"),
        (lambda state: state.update({"head.other": torch.zeros(1)}), "weight 'head.other' does not fit"),
        (lambda state: state.update({"head.mlp.1.weight": torch.zeros(2, 2)}), "'head.mlp.1.weight' does not fit"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(change, message: str) -> None:
    model, _, _ = built("esm2", "seq_classification", "head")
    state = trained_state(model)
    change(state)
    with pytest.raises(PlftError, match=message):
        load_trained_state(model, state, "file.safetensors")


# --- running it


def test_outputs_come_in_the_labels_own_units() -> None:
    numbers = LabelSpace(TaskType.SEQ_REGRESSION, columns=("a", "b"), mean=(1.0, -1.0), scale=(2.0, 10.0))
    values = outputs_of(torch.tensor([[0.5, 0.5]]), TaskType.SEQ_REGRESSION, numbers)
    assert values.tolist() == [[2.0, 4.0]]
    residues = LabelSpace(TaskType.TOKEN_REGRESSION, columns=("label",), mean=(1.0,), scale=(2.0,))
    assert outputs_of(torch.zeros(1, 3, 1), TaskType.TOKEN_REGRESSION, residues).tolist() == [[1.0, 1.0, 1.0]]
    classes = LabelSpace(TaskType.SEQ_CLASSIFICATION, ("no", "yes"))
    assert outputs_of(torch.zeros(1, 2), TaskType.SEQ_CLASSIFICATION, classes).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("task", ["seq_classification", "token_regression"])
def test_the_budget_of_a_batch_changes_no_output(task: str) -> None:
    model, dataset, _ = built("esm2", task, "head")
    model.eval()
    one_by_one = infer(model, dataset, dataset.labels, budget=1)
    together = infer(model, dataset, dataset.labels, budget=10_000)
    assert [each.shape for each in one_by_one] == [each.shape for each in together]
    for one, other in zip(one_by_one, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_inference_leaves_the_mode_of_the_model_as_it_was(training: bool) -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    model.train(training)
    told: list[int] = []
    for _, _, result in run_batches(model, dataset, [[0, 1], [2]], each_batch=told.append):
        assert not model.training
        assert not result.logits.requires_grad
    assert model.training is training
    assert told == [2, 1]


def test_a_head_of_your_own_gets_extra_columns_and_needs_no_other_arguments() -> None:
    class WithPh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Linear(33, 1)

        def forward(self, hidden_states, attention_mask, ph):
            return self.output(torch.cat([hidden_states.mean(1), ph.unsqueeze(-1)], dim=-1))

    checkpoint = tiny.checkpoint("esm2")
    records = [Record("a", "MKT", "1.0", extra={"ph": "7.5"}), Record("b", "MKTA", "2.0", extra={"ph": "5"})]
    labels = LabelSpace.fit(TaskType.SEQ_REGRESSION, records)
    dataset = build_dataset(
        records, checkpoint.residue_tokenizer, labels, is_residue_task=False, max_residues=9, extra_columns=("ph",)
    )
    model = PLMTaskModel("seq_regression", checkpoint.load_backbone(), WithPh())
    output = model(**batch_of(dataset))
    output.loss.backward()
    assert output.logits.shape == (2, 1)
    assert model.head.output.weight.grad.abs().sum() > 0
    assert model.backbone.embeddings.word_embeddings.weight.grad.abs().sum() > 0, "gradients flow through both"


def test_a_backbone_of_remote_code_may_return_a_tuple() -> None:
    class ReturnsTuple(ReadsTokens):
        def forward(self, input_ids, attention_mask, **options):
            return super().forward(input_ids, attention_mask).last_hidden_state, "pooled"

    config = tiny.checkpoint("esm2").config
    batch = {"input_ids": torch.tensor([[4, 5, 6]]), "attention_mask": torch.ones(1, 3)}
    for options in ({}, {"output_hidden_states": True}):
        one, other = (
            PLMTaskModel("token_regression", backbone(config), Unchanged())(**batch, **options)
            for backbone in (ReturnsTuple, ReadsTokens)
        )
        torch.testing.assert_close(one.logits, other.logits)
    assert one.hidden_states is None


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("budget", [1, 10_000])
def test_inference_lets_go_of_its_dataset(budget: int) -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    labels, there = dataset.labels, weakref.ref(dataset)
    gc.collect()
    gc.disable()  # a cycle would live until the next collection, and a proteome has many chunks until then
    try:
        infer(model, dataset, labels, budget=budget)
        del dataset
        assert there() is None
    finally:
        gc.enable()


def test_inference_leaves_tensors_that_training_can_use() -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    (_, _, result), *_ = run_batches(model, dataset, [[0, 1]])
    assert not result.logits.is_inference()
