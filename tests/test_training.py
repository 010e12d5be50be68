"""Training: resume, several processes, accumulation, early stopping, weights, precision, checkpointing, seeds."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional
from transformers import TrainerCallback, TrainingArguments

import small_run
import tiny
from grid import built
from plft.batching import collate
from plft.config import TrainingConfig, make_config
from plft.errors import PlftError
from plft.families import FAMILIES
from plft.pipeline import train
from plft.training import (
    SequenceTaskTrainer,
    choose_precision,
    last_checkpoint,
    or_worst,
    training_arguments,
)

HERE = Path(__file__).parent
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


# --- resume: 7 steps an epoch

KILLED = {
    "full": ({"training": {"save_steps": 3}}, ["step-1", "step-5", "step-8", "save-9"]),
    "epochs": ({}, ["step-9"]),
    "lora": (
        {
            "tuning": {"method": "lora", "dropout": 0.2},
            "training": {"save_steps": 2, "accumulation": 2, "batch_residues": 120, "max_steps": 7},
        },
        ["step-5", "scoring"],
    ),
    # the first evaluation stays the best one
    "stopped": ({"training": {"epochs": 9, "early_stopping": 1, "learning_rate": 1e-9}}, ["scoring"]),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per configuration an undisturbed run, `never`, and runs that were killed."""
    folder = tmp_path_factory.mktemp("killed")
    runs = []
    for name, (sections, moments) in KILLED.items():
        values = small_run.values(small_run.write_table(folder / f"{name}.csv"), **sections)
        runs += [[values, str(folder / name / moment), moment] for moment in ["never", *moments]]
    (folder / "runs.json").write_text(json.dumps(runs))
    command = [sys.executable, str(HERE / "interrupted.py"), str(folder / "runs.json")]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.split() == ["0" if each[2] == "never" else "-9" for each in runs], done.stderr
    return folder


@pytest.mark.parametrize(
    ("name", "moment"), [(name, each) for name, (_, moments) in KILLED.items() for each in moments]
)
def test_a_killed_run_resumes_to_the_same_result(killed: Path, name: str, moment: str) -> None:
    sections, _ = KILLED[name]
    undisturbed, resumed = killed / name / "never", killed / name / moment
    train(make_config(small_run.values(killed / f"{name}.csv", **sections)), resumed, resume=True)
    files = [each.relative_to(undisturbed) for each in undisturbed.glob("model/**/*.safetensors")]
    for file in [*files, Path("metrics.json"), Path("predictions/test.csv")]:
        assert (undisturbed / file).read_bytes() == (resumed / file).read_bytes(), file
    assert small_run.history(undisturbed) == small_run.history(resumed)


def test_history_holds_each_evaluation_once(killed: Path) -> None:
    def evaluated(run: str) -> list[int]:
        return [row["step"] for row in small_run.history(killed / run) if "valid_loss" in row]

    assert evaluated("full/never") == [3, 6, 9, 12, 14]
    assert evaluated("epochs/never") == [7, 14]
    assert evaluated("lora/never") == [2, 4, 6, 7]
    assert evaluated("stopped/never") == [7, 14]


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path: Path) -> None:
    put_aside = ("checkpoint-12.bak", '{"step": 12}')
    written = (("checkpoint-9", '{"step": 9}'), ("checkpoint-10", '{"ste'), ("checkpoint-11", None), put_aside)
    for name, state in written:
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert last_checkpoint(tmp_path / "checkpoint-11") is None


# --- several processes


@pytest.mark.parametrize(
    "method", ["full", pytest.param("lora", marks=pytest.mark.slow), pytest.param("head", marks=pytest.mark.slow)]
)
def test_two_processes_have_the_loss_curve_of_one_process_on_the_same_global_batches(
    tmp_path: Path, method: str
) -> None:
    values = small_run.values(
        small_run.write_table(tmp_path / "data.csv"),
        model={"head_dropout": 0.0},  # every process draws its own dropout
        tuning={"method": method, "dropout": 0.0},
        training={"save_steps": 3, "batch_residues": 100},
    )
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    done = launch("train", "--config", str(config), "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert "destroy_process_group" not in done.stderr
    assert done.stdout.count("report:") == 1

    values["training"]["accumulation"] = 2
    train(make_config(values), tmp_path / "one")
    for one, two in zip(small_run.history(tmp_path / "one"), small_run.history(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    assert json.loads((tmp_path / "two/environment.json").read_text())["processes"] == 2
    with (tmp_path / "two/predictions/test.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 12


@pytest.mark.slow
def test_an_error_ends_all_processes(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    done = launch("train", str(data), "--model", "scratch:tiny-esm2", "--set", "training.metric=nonsense")
    assert done.returncode == 1
    assert "Error: Unknown metric for seq_classification 'nonsense'." in done.stderr


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line on two processes of this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "plft", *arguments]
    return subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300, check=False)


def test_several_gpus_in_one_process_are_not_used_through_data_parallel(tmp_path: Path) -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments._n_gpu = 4
    assert SequenceTaskTrainer(model, arguments, train_dataset=dataset).args.n_gpu == 1


# --- FSDP, which accelerate refuses on a CPU: the settings are checked


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", tiny.TINY)
def test_fsdp_finds_the_layers_to_wrap_in_the_model(family: str, method: str) -> None:
    from accelerate import FullyShardedDataParallelPlugin

    settings = yaml.safe_load((HERE.parent / "examples" / "fsdp.yaml").read_text())
    assert settings["distributed_type"] == "FSDP"
    fsdp = settings["fsdp_config"]
    model, _, _ = built(family, "seq_classification", method)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=fsdp["fsdp_version"], auto_wrap_policy=fsdp["fsdp_auto_wrap_policy"].lower()
    )
    plugin.set_auto_wrap_policy(model)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    blocks = [each for each in model.modules() if type(each) in wrapped]
    assert len(blocks) >= 2, "a tiny model has two blocks"


# --- accumulation


@pytest.mark.parametrize("task", ["seq_classification", "token_regression", "seq_multilabel"])
def test_accumulated_batches_give_the_gradients_of_one_big_batch(tmp_path: Path, task: str) -> None:
    big = gradients_of_first_step(tmp_path, task, token_budget=10_000, accumulation=1)
    small = gradients_of_first_step(tmp_path, task, token_budget=1, accumulation=8)
    assert big.keys() == small.keys()
    for name, each in big.items():
        torch.testing.assert_close(each, small[name], rtol=1e-4, atol=1e-6)


def gradients_of_first_step(folder: Path, task: str, token_budget: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Gradients of one step over eight weighted sequences, one of them without a label."""
    torch.manual_seed(0)
    model, dataset, _ = built("esm2", task, "full")
    without_dropout(model)
    for at, example in enumerate(dataset.examples):
        object.__setattr__(example, "weight", 0.5 + at)
    missing = dataset.examples[3].label
    missing[...] = -100 if missing.dtype.kind == "i" else np.nan
    if task != "token_regression":
        model.register_buffer("class_weights", torch.tensor([0.2, 3.0, 1.0][: len(dataset.labels.classes)]))
    keeper = KeepGradients()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=1, gradient_accumulation_steps=accumulation, use_cpu=True, report_to="none"
    )
    trainer = SequenceTaskTrainer(
        model, arguments, train_dataset=dataset, token_budget=token_budget, callbacks=[keeper]
    )
    trainer.train()
    return keeper.gradients


class KeepGradients(TrainerCallback):
    """Keeps the gradients of the first step, before they are clipped away."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def without_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


# --- early stopping


class Scripted(SequenceTaskTrainer):
    """Evaluations return a script of metric values."""

    script = (0.1, 0.5, 0.4, 0.3, 0.9)

    def evaluate(self, *args, **kwargs):
        value = self.script[round(self.state.epoch) - 1]
        metrics = {"eval_mcc": value, "eval_loss": -value}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def test_training_stops_when_the_metric_no_longer_rises_and_the_best_checkpoint_is_loaded(tmp_path: Path) -> None:
    from plft.training import stopping

    model, dataset, _ = built("esm2", "seq_classification", "full")
    settings = TrainingConfig(epochs=5, early_stopping=2)
    arguments = training_arguments(
        settings, tmp_path, precision="fp32", learning_rate=1e-2, metric="mcc", can_evaluate=True
    )
    keeper = KeepWeights()
    trainer = Scripted(
        model,
        arguments,
        train_dataset=dataset,
        eval_dataset=dataset,
        token_budget=10_000,
        callbacks=[*stopping(settings, True), keeper],
    )
    trainer.train()
    assert trainer.state.global_step == 4, "two evaluations after the best one, of epoch 2"
    assert trainer.state.best_global_step == 2
    assert all(torch.equal(each, keeper.weights[1][name]) for name, each in model.state_dict().items())
    assert not all(torch.equal(each, keeper.weights[3][name]) for name, each in model.state_dict().items())


class KeepWeights(TrainerCallback):
    """Keeps the weights at the end of every epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs) -> None:
        self.weights.append({name: each.clone() for name, each in model.state_dict().items()})


def test_without_a_validation_part_training_neither_evaluates_nor_stops(tmp_path: Path) -> None:
    arguments = training_arguments(
        TrainingConfig(), tmp_path, precision="fp32", learning_rate=1e-3, metric="mcc", can_evaluate=False
    )
    assert arguments.eval_strategy == "no"
    assert not arguments.load_best_model_at_end


# --- class weights


@pytest.mark.parametrize("task", ["seq_classification", "token_classification"])
def test_class_weights_are_those_of_torchs_cross_entropy(task: str) -> None:
    model, dataset, _ = built("esm2", task, "full")
    without_dropout(model)
    weights = torch.tensor([0.2, 3.0, 1.0][: len(dataset.labels.classes)])
    model.class_weights = weights
    batch = collate(list(dataset), dataset.labels, dataset.pad_token_id, dataset.is_residue_task)
    output = model(**batch)
    expected = functional.cross_entropy(
        output.logits.flatten(0, -2), batch["labels"].flatten(), weight=weights, ignore_index=-100
    )
    torch.testing.assert_close(output.loss, expected)


# --- precision


@pytest.mark.parametrize(
    ("family", "cuda", "bf16", "cpu", "expected"),
    [
        ("esm2", True, True, {}, "bf16"),
        ("esm2", True, False, {}, "fp16"),
        ("prott5", True, True, {}, "bf16"),
        ("prott5", True, False, {}, "fp32"),
        ("ankh", True, False, {}, "fp32"),
        ("prostt5", True, False, {}, "fp32"),
        ("esm2", False, False, {}, "fp32"),
        ("esm2", False, False, {"amx_bf16": True}, "bf16"),
        ("prott5", False, False, {"avx512_bf16": True}, "bf16"),
    ],
)
def test_precision_follows_device_and_family(
    monkeypatch: pytest.MonkeyPatch, family: str, cuda: bool, bf16: bool, cpu: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    precision, reason = choose_precision("auto", FAMILIES[family])
    assert precision == expected
    assert reason


@pytest.mark.parametrize("family", ["prott5", "prostt5", "ankh"])
def test_t5_is_never_trained_in_fp16(family: str) -> None:
    with pytest.raises(PlftError, match="overflows to NaN in fp16"):
        choose_precision("fp16", FAMILIES[family])


# --- gradient checkpointing


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", tiny.TINY)
def test_gradient_checkpointing_gives_the_same_gradients(family: str, method: str) -> None:
    torch.manual_seed(0)
    model, dataset, _ = built(family, "seq_classification", method)
    batch = collate(list(dataset), dataset.labels, dataset.pad_token_id, dataset.is_residue_task)
    kept, calls = gradients_and_calls(model, batch, family)
    model.activation_checkpointing_enable()
    recomputed, calls_again = gradients_and_calls(model, batch, family)
    assert (calls, calls_again) == (1, 2), "the last block runs again in the backward pass"
    assert kept.keys() == recomputed.keys()
    for name, each in kept.items():
        torch.testing.assert_close(each, recomputed[name], rtol=1e-5, atol=1e-7)


def gradients_and_calls(model, batch, family: str) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of one training step, and how often the innards of the last block ran."""
    block = next(
        each for name, each in model.named_modules() if name.endswith(f"{tiny.checkpoint(family).family.blocks}.1")
    )
    calls = []
    innards = next(each for each in block.modules() if isinstance(each, torch.nn.LayerNorm) or is_norm_like(each))
    handle = innards.register_forward_hook(lambda *ignored: calls.append(1))
    torch.manual_seed(1)
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    handle.remove()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}, len(calls)


def is_norm_like(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


@pytest.mark.usefixtures("unscored")
def test_a_run_with_gradient_checkpointing_equals_one_without(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")
    for name, on in (("kept", False), ("recomputed", True)):
        settings = {"gradient_checkpointing": on, "epochs": 1}
        train(small_run.config(data, training=settings), tmp_path / name)
    one, other = (small_run.history(tmp_path / name) for name in ("kept", "recomputed"))
    assert [row["step"] for row in one] == [row["step"] for row in other]
    assert one[-1] == pytest.approx(other[-1], rel=1e-4)


# --- seeds


@pytest.mark.usefixtures("unscored")
def test_a_seed_decides_the_weights(tmp_path: Path) -> None:
    data = small_run.write_table(tmp_path / "data.csv")

    def weights(name: str, seed: int) -> bytes:
        torch.rand(3)  # what happened before must not matter
        train(small_run.config(data, training={"seed": seed, "epochs": 1}), tmp_path / name)
        return (tmp_path / name / "model/trained.safetensors").read_bytes()

    first = weights("first", 7)
    assert weights("again", 7) == first
    assert weights("other", 8) != first


def test_an_undefined_metric_is_worse_than_any_other() -> None:
    assert or_worst("spearman", float("nan")) == -float("inf")
    assert or_worst("rmse", float("nan")) == float("inf")
    assert or_worst("mcc", 0.25) == 0.25


def test_only_the_metric_that_picks_the_best_checkpoint_is_made_comparable(tmp_path: Path) -> None:
    model, dataset, _ = built("esm2", "seq_regression", "head")
    for each in model.head.parameters():
        torch.nn.init.zeros_(each)  # a constant prediction: no correlation is defined
    arguments = TrainingArguments(
        output_dir=str(tmp_path), metric_for_best_model="spearman", use_cpu=True, report_to="none"
    )
    trainer = SequenceTaskTrainer(model, arguments, train_dataset=dataset, eval_dataset=dataset)
    scores = trainer.evaluate()
    assert np.isnan([scores["eval_spearman"], scores["eval_pearson"]]).all()
    trainer.is_in_train = True
    scores = trainer.evaluate()
    assert scores["eval_spearman"] == -float("inf")
    assert np.isnan(scores["eval_pearson"])


# --- arguments


def test_a_batch_size_in_the_arguments_counts(tmp_path: Path) -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, use_cpu=True)
    given = SequenceTaskTrainer(model, arguments, train_dataset=dataset).token_budget
    single = SequenceTaskTrainer(
        model, train_dataset=dataset, output_dir=tmp_path, per_device_train_batch_size=2
    ).token_budget
    assert given == single == int(2 * dataset.lengths.mean())


def test_arguments_that_nothing_would_read_are_an_error(tmp_path: Path) -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for args in (None, arguments):
        with pytest.raises(PlftError, match=r"'learning_rat'.*Did you mean 'learning_rate'"):
            SequenceTaskTrainer(model, args, train_dataset=dataset, learning_rat=1.0)
    with pytest.raises(PlftError, match="'learning_rate' is given beside args="):
        SequenceTaskTrainer(model, arguments, train_dataset=dataset, learning_rate=1.0)


def test_an_optimizer_and_metrics_of_your_own_reach_the_trainer(tmp_path: Path) -> None:
    model, dataset, _ = built("esm2", "seq_classification", "head")
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.0)
    trainer = SequenceTaskTrainer(
        model,
        train_dataset=dataset,
        eval_dataset=dataset,
        output_dir=tmp_path,
        max_steps=1,
        save_strategy="no",
        optimizers=(optimizer, None),
        compute_metrics=lambda prediction: {"largest": np.max(prediction.predictions), "n": len(prediction.label_ids)},
    )
    trainer.train()
    assert getattr(trainer.optimizer, "optimizer", trainer.optimizer) is optimizer
    scores = trainer.evaluate()
    assert scores["eval_n"] == len(dataset)
    assert 1 / 3 <= scores["eval_largest"] <= 1
    assert "eval_mcc" in scores
