"""The Python API: the published write-up's example with our classes, and `finetune` and `load`."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import nn

import plft
import small_run
import tiny
from plft import (
    MLPHead,
    PLMTaskModel,
    ProteinDataModule,
    ProteinTaskTrainer,
    SequenceDataModule,
    SequenceTaskTrainer,
    TaskType,
    get_compute_metrics_fn,
)
from plft.config import make_config
from plft.model import load_trained_state, train_the_head
from plft.preparation import check_head, has_cls

KINDS = {
    "seq_classification": (TaskType.SEQ_CLASSIFICATION, lambda s, at: at % 2, 2),
    "seq_regression": (TaskType.SEQ_REGRESSION, lambda s, at: s.count("A") / len(s) + at, 1),
    "token_classification": (TaskType.TOKEN_CLASSIFICATION, lambda s, at: "".join("CH"[c in "ACDE"] for c in s), 2),
    "token_regression": (TaskType.TOKEN_REGRESSION, lambda s, at: " ".join(str(ord(c) / 10) for c in s), 1),
}


@pytest.fixture(scope="module")
def protbert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder as ProtBert's would be."""
    return str(tiny.save(tiny.checkpoint("protbert"), tmp_path_factory.mktemp("prot_bert")))


def write_files(folder: Path, kind: str) -> dict[str, str]:
    """train, valid and test as three files; two sequences hold the rare U and Z."""
    label = KINDS[kind][1]
    random = np.random.default_rng(0)
    files = {}
    for name, n in (("train", 12), ("valid", 6), ("test", 6)):
        sequences = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWYUZ"), size=8 + at)) for at in range(n)]
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            rows = [(each, label(each, at)) for at, each in enumerate(sequences)]
            csv.writer(handle).writerows([("sequence", "label"), *rows])
        files[name] = str(folder / f"{name}.csv")
    return files


def preprocess(sequence: str) -> str:
    """As the model card of ProtBert says."""
    return " ".join(re.sub(r"[UZOB]", "X", sequence))


def data_module(files: dict[str, str], tokenizer) -> ProteinDataModule:
    return ProteinDataModule(
        train_file=files["train"],
        val_file=files["valid"],
        tokenizer=tokenizer,
        preprocess_fn=preprocess,
        max_length=64,
        test_file=files["test"],
    )


def trainer_for(model, datasets, tokenizer, folder: Path, **more: object) -> ProteinTaskTrainer:
    return ProteinTaskTrainer(
        model=model,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        test_dataset=datasets["test"],
        tokenizer=tokenizer,
        output_dir=str(folder / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        **more,
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_write_ups_example_runs(tmp_path: Path, protbert: str, kind: str) -> None:
    from transformers import AutoTokenizer

    task, _, n_outputs = KINDS[kind]
    tokenizer = AutoTokenizer.from_pretrained(protbert)
    mode = "residue" if task.is_residue else "protein"
    head = MLPHead(input_dim=32, hidden_dim=16, output_dim=n_outputs, classification_mode=mode)
    model = PLMTaskModel(task_type=task, backbone_name=protbert, head=head)
    datasets = data_module(write_files(tmp_path, kind), tokenizer).get_datasets()
    trainer = trainer_for(model, datasets, tokenizer, tmp_path)
    before = {name: each.clone() for name, each in model.named_parameters()}
    result = trainer.train()
    assert 3 <= result.global_step <= 4, "twelve sequences, about four in a batch"
    changed = {name.partition(".")[0] for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == {"backbone", "head"}
    scores = trainer.evaluate(split="test")
    assert np.isfinite(scores["eval_loss"])
    assert {"eval_spearman" if task.is_regression else "eval_mcc"} <= set(scores)


@pytest.mark.parametrize("kind", list(KINDS))
def test_peft_around_the_model_still_trains_the_head(tmp_path: Path, protbert: str, kind: str) -> None:
    task, _, n_outputs = KINDS[kind]
    tokenizer = tiny.checkpoint("protbert").tokenizer
    mode = "residue" if task.is_residue else "protein"
    head = MLPHead(input_dim=32, hidden_dim=16, output_dim=n_outputs, classification_mode=mode)
    plain = PLMTaskModel(task_type=task, backbone_name=protbert, head=head)
    peft_task = "TOKEN_CLS" if task.is_residue else "SEQ_CLS"
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["query", "value"], task_type=peft_task)
    model = get_peft_model(plain, config)
    assert not any(each.requires_grad for each in head.parameters()), "peft alone freezes the fresh head"
    datasets = data_module(write_files(tmp_path, kind), tokenizer).get_datasets()
    trainer = trainer_for(model, datasets, tokenizer, tmp_path, load_best_model_at_end=True)
    before = {name: each.clone() for name, each in model.named_parameters()}
    trainer.train()
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    trainable = {name for name in before if ".head.modules_to_save." in name or ".lora_" in name}
    assert changed == trainable, "and nothing else"
    assert np.isfinite(trainer.evaluate(split="test")["eval_loss"])


def test_gradients_of_a_wrappers_own_weights_are_clipped_too(tmp_path: Path, protbert: str) -> None:
    tokenizer = tiny.checkpoint("protbert").tokenizer
    model = PLMTaskModel("seq_classification", protbert, OwnHead(32, 2))
    datasets = data_module(write_files(tmp_path, "seq_classification"), tokenizer).get_datasets()
    trainer = trainer_for(model, datasets, tokenizer, tmp_path, max_grad_norm=1.0)

    class Wrapper(torch.nn.Sequential):
        """Answers for what is within, as peft's do, and has weights of its own, as those with prompts."""

        trained_part = property(lambda self: self[0].trained_part)

    wrapper = Wrapper(model, torch.nn.Linear(2, 2, bias=False))
    for each in wrapper.parameters():
        each.grad = torch.full_like(each, 100.0)
    trainer._clip_grad_norm(wrapper)
    norms = torch.stack([each.grad.norm() for each in wrapper.parameters()])
    assert float(norms.norm()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("save", ["model", "trainer"])
def test_an_adapter_saved_by_hand_comes_back_with_its_head(tmp_path: Path, protbert: str, save: str) -> None:
    tokenizer = tiny.checkpoint("protbert").tokenizer
    model = get_peft_model(
        PLMTaskModel("seq_classification", protbert, OwnHead(32, 2)), LoraConfig(target_modules=["query"])
    )
    datasets = data_module(write_files(tmp_path, "seq_classification"), tokenizer).get_datasets()
    trainer = trainer_for(model, datasets, tokenizer, tmp_path)
    trainer.train()
    if save == "model":
        model.save_pretrained(tmp_path / "adapter")
    else:
        trainer.save_model(str(tmp_path / "adapter"))
    fresh = PLMTaskModel("seq_classification", protbert, OwnHead(32, 2))
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    batch = trainer.data_collator(list(datasets["test"]))
    torch.testing.assert_close(loaded.eval()(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=0)


def test_adapters_inside_the_head_are_refused_and_left_out_as_the_error_says(protbert: str) -> None:
    def wrapped(**options: object) -> PeftModel:
        model = PLMTaskModel("seq_classification", protbert, OwnHead(32, 2))
        return get_peft_model(model, LoraConfig(target_modules="all-linear", **options))

    with pytest.raises(plft.PlftError, match=r"Pass modules_to_save=\['head'\]"):
        train_the_head(wrapped())
    model = wrapped(modules_to_save=["head"])
    train_the_head(model)
    assert not any(".head." in name and ".lora_" in name for name, _ in model.named_parameters())


def test_a_model_without_peft_comes_back_from_what_the_trainer_saved(tmp_path: Path, protbert: str) -> None:
    tokenizer = tiny.checkpoint("protbert").tokenizer
    model = PLMTaskModel("seq_classification", protbert, OwnHead(32, 2), freeze_backbone=True)
    datasets = data_module(write_files(tmp_path, "seq_classification"), tokenizer).get_datasets()
    trainer = trainer_for(model, datasets, tokenizer, tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    fresh = PLMTaskModel("seq_classification", protbert, OwnHead(32, 2), freeze_backbone=True)
    load_trained_state(fresh, load_file(tmp_path / "saved" / "model.safetensors"), "saved")
    batch = trainer.data_collator(list(datasets["test"]))
    torch.testing.assert_close(fresh.eval()(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_was_frozen_in_a_head_on_purpose_stays_frozen(protbert: str, wrapped: bool) -> None:
    model = PLMTaskModel("seq_classification", protbert, OwnHead(32, 2))
    if wrapped:
        model = get_peft_model(model, LoraConfig(target_modules=["query"]))
        model.get_base_model().head.linear.weight.requires_grad_(True)
    else:
        model.head.linear.bias.requires_grad_(False)
    train_the_head(model)
    trainable = {
        name.rpartition(".")[2]
        for name, each in model.named_parameters()
        if each.requires_grad and ".head." in f".{name}"
    }
    assert trainable == {"weight"}


class OwnHead(nn.Module):
    """As the write-up writes one: two arguments, and no others."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, output_dim)

    def forward(self, hidden_states, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return self.linear((hidden_states * mask).sum(1) / mask.sum(1))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_head_with_the_two_arguments_of_the_write_up_works(tmp_path: Path, protbert: str, wrapped: bool) -> None:
    tokenizer = tiny.checkpoint("protbert").tokenizer
    model = PLMTaskModel("seq_classification", protbert, OwnHead(32, 2))
    if wrapped:
        model = get_peft_model(model, LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    datasets = data_module(write_files(tmp_path, "seq_classification"), tokenizer).get_datasets()
    trainer = trainer_for(model, datasets, tokenizer, tmp_path)
    trainer.train()
    assert np.isfinite(trainer.evaluate(split="validation")["eval_loss"])


def test_a_split_that_is_not_there_is_named(tmp_path: Path, protbert: str) -> None:
    tokenizer = tiny.checkpoint("protbert").tokenizer
    model = PLMTaskModel("seq_classification", protbert, OwnHead(32, 2), freeze_backbone=True)
    datasets = data_module(write_files(tmp_path, "seq_classification"), tokenizer).get_datasets()
    trainer = trainer_for(model, datasets, tokenizer, tmp_path)
    with pytest.raises(plft.PlftError, match=r"Unknown split 'tset'\. Known: train, validation, test"):
        trainer.evaluate(split="tset")


def test_names_of_the_write_up_are_ours() -> None:
    assert ProteinDataModule is SequenceDataModule
    assert ProteinTaskTrainer is SequenceTaskTrainer
    assert {each.name for each in TaskType} >= {
        "SEQ_CLASSIFICATION",
        "SEQ_REGRESSION",
        "TOKEN_CLASSIFICATION",
        "TOKEN_REGRESSION",
    }
    assert all(getattr(plft, name) is not None for name in plft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = plft.nonsense


# --- metrics for a plain Trainer


def test_compute_metrics_scores_classes() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 3
    scores = get_compute_metrics_fn(TaskType.SEQ_CLASSIFICATION, ("a", "b", "c"))(
        SimpleNamespace(predictions=logits, label_ids=labels)
    )
    assert scores["mcc"] == pytest.approx(matthews_corrcoef(labels, logits.argmax(-1)))
    assert scores["f1_macro"] == pytest.approx(f1_score(labels, logits.argmax(-1), average="macro"))


def test_compute_metrics_leaves_out_padding() -> None:
    logits = np.zeros((2, 3, 2))
    logits[0, :, 1] = 1  # says class 1 in the first sequence, class 0 in the second
    labels = np.array([[1, 1, -100], [0, -100, -100]])
    evaluation = SimpleNamespace(predictions=logits, label_ids=labels)
    assert get_compute_metrics_fn("token_classification", ("C", "H"))(evaluation)["accuracy"] == 1.0


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_compute_metrics_scores_numbers(shape: tuple[int, ...]) -> None:
    values = np.array([0.1, 0.2, 0.5, 0.3])
    evaluation = SimpleNamespace(predictions=values.reshape(4, 1), label_ids=(values * 2 + 1).reshape(shape))
    scores = get_compute_metrics_fn("seq_regression")(evaluation)
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((values + 1) ** 2)))


def test_compute_metrics_scores_residue_numbers() -> None:
    logits = np.array([[[1.0], [2.0], [9.0]], [[3.0], [9.0], [9.0]]])
    labels = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    scores = get_compute_metrics_fn("token_regression")(SimpleNamespace(predictions=logits, label_ids=labels))
    assert scores["rmse"] == pytest.approx(0.0)


def test_compute_metrics_works_in_a_plain_transformers_trainer(tmp_path: Path, protbert: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    model = AutoModelForSequenceClassification.from_pretrained(protbert, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(protbert)
    rows = [{**tokenizer("M K T A Y"), "label": at % 2} for at in range(4)]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = Trainer(
        model,
        arguments,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=get_compute_metrics_fn(TaskType.SEQ_CLASSIFICATION, ("no", "yes")),
    )
    assert trainer.evaluate()["eval_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [
        ("seq_regression", [[1.0], [2.0], [9.0]], [1.0, 2.0, -100]),
        ("token_regression", [[[1.0], [2.0]], [[3.0], [9.0]]], [[1.0, 2.0], [3.0, -100]]),
    ],
)
def test_compute_metrics_takes_minus_100_for_a_missing_number(task: str, logits: list, labels: list) -> None:
    evaluation = SimpleNamespace(predictions=np.array(logits), label_ids=np.array(labels))
    assert get_compute_metrics_fn(task)(evaluation)["rmse"] == pytest.approx(0.0)


def test_compute_metrics_takes_minus_100_for_a_missing_set_of_classes() -> None:
    logits = np.array([[9.0, -9.0], [-9.0, 9.0], [9.0, 9.0]])
    evaluation = SimpleNamespace(predictions=logits, label_ids=np.array([[1, 0], [0, 1], [-100, -100]]))
    assert get_compute_metrics_fn("seq_multilabel", ("a", "b"))(evaluation)["subset_accuracy"] == 1.0


# --- finetune and load


def test_finetune_takes_plain_values_and_load_gives_a_predictor(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    run = plft.finetune(small_run.values(data, training={"max_steps": 2}), tmp_path / "run")
    assert run.path == tmp_path / "run"
    assert run.metrics["main_metric"] == "mcc"
    sequences = ["MKTAYIAKQR", "acdef"]
    predicted = plft.load(tmp_path / "run").predict(sequences)
    assert predicted == run.predict(sequences)
    assert len(predicted) == 2
    assert set(predicted) <= {"no", "yes", "maybe"}
    assert plft.load(str(tmp_path / "run")).predict("MKTAYIAKQR") == predicted[:1]
    assert plft.evaluate(tmp_path / "run")["n"] == 12


def test_finetune_takes_a_yaml_file(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    plft.finetune(small_run.values(data, training={"max_steps": 2}), tmp_path / "one")
    plft.finetune(tmp_path / "one" / "run.yaml", tmp_path / "two")
    for file in ("metrics.json", "predictions/test.csv", "model/trained.safetensors", "run.yaml"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"model": {"head": "mlp", "head_kernel": 5}}, "model.head_kernel"),
        ({"model": {"head": "linear", "head_layers": 2}}, "model.head_layers"),
        ({"model": {"head": "linear", "head_width": 8}}, "model.head_width"),
        ({"model": {"head": "light_attention", "pooling": "max"}}, "model.pooling"),
        ({"data": {"extra_columns": ["ph"]}}, "data.extra_columns"),
    ],
)
def test_settings_that_a_head_would_ignore_are_refused(sections: dict, name: str) -> None:
    config = make_config({"data": {"file": "data.csv"} | sections.get("data", {}), "model": sections.get("model", {})})
    with pytest.raises(plft.PlftError, match=f"{name} has no effect"):
        check_head(config, TaskType.SEQ_CLASSIFICATION, custom_head=False)
    check_head(config, TaskType.SEQ_CLASSIFICATION, custom_head=True)


@pytest.mark.parametrize(("family", "has"), [("esm2", True), ("protbert", True), ("mistral-dna", False)])
def test_only_a_token_that_sees_the_sequence_stands_for_it(family: str, has: bool) -> None:
    assert has_cls(tiny.checkpoint(family)) == has


def test_pooling_is_refused_in_a_residue_task_but_for_the_default_that_run_yaml_states() -> None:
    def check(pooling: str) -> None:
        config = make_config({"data": {"file": "data.csv"}, "model": {"pooling": pooling}})
        check_head(config, TaskType.TOKEN_CLASSIFICATION, custom_head=False)

    check("mean")
    with pytest.raises(plft.PlftError, match="no effect with the head mlp in a residue task"):
        check("max")
