"""The run folder: reload, export, adapters, ready-made checkpoints, heads of your own, damage."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTextEncoding, AutoTokenizer

import plft
import small_run
import tiny
from grid import built, records
from plft.batching import collate
from plft.errors import PlftError
from plft.labels import LabelSpace, TaskType
from plft.pipeline import predict
from plft.records import Columns, read_records
from plft.runfolder import (
    RunFolder,
    export_model,
    labels_of_config,
    load_anything,
    load_predictor,
    new_folder,
    read_json,
    save_model,
    write_json,
)

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model as a local folder."""
    return tiny.save(tiny.checkpoint("esm2", seed=5), tmp_path_factory.mktemp("base") / "esm2")


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A finished LoRA run on the local folder."""
    folder = tmp_path_factory.mktemp("lora")
    values = small_run.values(
        small_run.write_table(folder / "data.csv"),
        model={"name": str(base)},
        tuning={"method": "lora", "train_layer_norms": True},
        training={"learning_rate": 1e-2},
    )
    return plft.finetune(values, folder / "run").path


def columns(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


def without_labels(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "label"} for row in rows]


# --- reload


def test_a_fresh_process_elsewhere_predicts_what_the_run_predicted(lora_run: Path, tmp_path: Path) -> None:
    """Also from a copy of the folder, given by a relative name."""
    shutil.copytree(lora_run, tmp_path / "copied")
    test = [row for row in columns(lora_run.parent / "data.csv") if row["split"] == "test"]
    with (tmp_path / "test.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("id", "sequence"), *((row["id"], row["sequence"]) for row in test)])
    command = [sys.executable, "-m", "plft", "predict", "copied", "test.csv", "-o", "out.csv"]
    done = subprocess.run(command, cwd=tmp_path, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert columns(tmp_path / "out.csv") == without_labels(columns(lora_run / "predictions/test.csv"))


def test_the_folder_holds_what_the_design_promises(lora_run: Path) -> None:
    names = {str(each.relative_to(lora_run)) for each in lora_run.rglob("*") if each.is_file()}
    assert {
        "run.yaml",
        "metrics.json",
        "history.jsonl",
        "predictions/test.csv",
        "environment.json",
        "report.html",
        "README.md",
        "model/plft.json",
        "model/trained.safetensors",
        "model/adapter/adapter_model.safetensors",
        "model/adapter/adapter_config.json",
    } <= names
    assert not [name for name in names if name.startswith("model/") and name.endswith((".bin", ".pt", ".pkl"))]
    card = read_json(lora_run / "model/plft.json")
    assert card["labels"]["classes"] == ["maybe", "no", "yes"]
    assert len(card["base"]["sha256"]) == 64


def test_a_base_model_named_by_a_relative_path_is_found_from_anywhere(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    values = small_run.values(
        small_run.write_table(tmp_path / "data.csv"),
        model={"name": base.name},
        tuning={"method": "head"},
        training={"max_steps": 1},
    )
    plft.finetune(values, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert len(plft.load("run").predict(["MKT"])) == 1


def test_a_base_model_whose_weights_have_changed_is_refused(lora_run: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "other")
    tiny.save(tiny.checkpoint("esm2", seed=6), tmp_path / "other")
    shutil.copytree(lora_run / "model", tmp_path / "model")
    card = read_json(tmp_path / "model/plft.json")
    card["base"]["name"] = str(tmp_path / "other")
    write_json(tmp_path / "model/plft.json", card)
    with pytest.raises(PlftError, match="is not the one this run was trained on"):
        load_predictor(tmp_path / "model")


# --- plain peft, plain transformers


def hidden_states(model: nn.Module, sequences: list[str], family: str = "esm2") -> list[np.ndarray]:
    tokenizer = tiny.checkpoint(family).residue_tokenizer
    model.eval()
    with torch.no_grad():
        return [
            model(input_ids=torch.from_numpy(tokens.input_ids).long().unsqueeze(0)).last_hidden_state.numpy()
            for tokens in tokenizer.encode_all(sequences)
        ]


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("family", ["esm2", "prott5", "protgpt2"])
def test_the_adapter_loads_with_plain_peft(family: str, method: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model, _, card = built(family, "seq_classification", method)
    disturb(model)
    save_model(tmp_path / "model", model, card, tiny.checkpoint(family))
    loader = AutoModelForTextEncoding if family == "prott5" else AutoModel
    base = loader.from_pretrained(tiny.save(tiny.checkpoint(family), tmp_path / "base"))
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "model/adapter")
    sequences = [each.sequence for each in records(family, TaskType.SEQ_CLASSIFICATION)]
    for one, other in zip(
        hidden_states(model.backbone, sequences, family), hidden_states(with_adapter, sequences, family), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def disturb(model: nn.Module) -> None:
    """Give every weight that trains a value that matters."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "full", "head", "last-1"])
@pytest.mark.parametrize("family", ["esm2", "prott5", "protgpt2", "mistral-dna"])
def test_an_export_loads_with_plain_transformers_and_predicts_the_same(
    family: str, method: str, tmp_path: Path
) -> None:
    model, _, card = built(family, "seq_classification", method)
    disturb(model)
    save_model(tmp_path / "model", model, card, tiny.checkpoint(family))
    export_model(tmp_path / "model", tmp_path / "export")
    loader = AutoModelForTextEncoding if family == "prott5" else AutoModel
    plain = loader.from_pretrained(tmp_path / "export")
    AutoTokenizer.from_pretrained(tmp_path / "export")
    sequences = [each.sequence for each in records(family, TaskType.SEQ_CLASSIFICATION)]
    for one, other in zip(
        hidden_states(model.backbone, sequences, family), hidden_states(plain, sequences, family), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    ours, theirs = load_predictor(tmp_path / "model"), load_anything(tmp_path / "export")
    for one, other in zip(ours.probabilities(sequences), theirs.probabilities(sequences), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_an_exported_run_predicts_the_same_file(lora_run: Path, tmp_path: Path) -> None:
    export_model(RunFolder(lora_run).model, tmp_path / "export")
    for name, path in (("run", lora_run), ("export", tmp_path / "export")):
        predict(path, lora_run.parent / "data.csv", tmp_path / f"{name}.csv")
    one, other = columns(tmp_path / "run.csv"), columns(tmp_path / "export.csv")
    assert len(one) == 60
    assert [row["prediction"] for row in one] == [row["prediction"] for row in other]
    for mine, theirs in zip(one, other, strict=True):
        assert float(mine["probability_yes"]) == pytest.approx(float(theirs["probability_yes"]), abs=1e-4)


def test_bottleneck_adapters_cannot_be_exported(tmp_path: Path) -> None:
    model, _, card = built("esm2", "seq_classification", "adapter")
    save_model(tmp_path / "model", model, card, tiny.checkpoint("esm2"))
    with pytest.raises(PlftError, match="cannot be merged"):
        export_model(tmp_path / "model", tmp_path / "export")
    assert not (tmp_path / "export").exists()


# --- checkpoints that bring a head


def save_classifier(folder: Path, family: str, residues: bool, **settings: object) -> nn.Module:
    """A tiny ...ForSequenceClassification or ...ForTokenClassification as a local folder."""
    from transformers import AutoModelForTokenClassification

    checkpoint = tiny.checkpoint(family)
    config = type(checkpoint.config).from_dict(checkpoint.config.to_dict() | settings)
    config.architectures = None
    torch.manual_seed(0)
    loader = AutoModelForTokenClassification if residues else AutoModelForSequenceClassification
    model = loader.from_config(config).eval()
    model.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return model


def named(*names: str) -> dict[str, object]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}


@pytest.mark.parametrize("family", ["esm2", "protbert", "protgpt2"])
def test_a_sequence_classifier_can_be_evaluated_and_used_directly(family: str, tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "model", family, residues=False, **named("cytosol", "membrane"))
    tokenizer = tiny.checkpoint(family).residue_tokenizer
    sequences = ["MKTAYIAKQR", "ACDEFGHIKLMNP"]
    expected = [
        model(input_ids=torch.from_numpy(each.input_ids).long()[None]).logits.softmax(-1)[0].detach().numpy()
        for each in tokenizer.encode_all(sequences)
    ]
    for one, other in zip(plft.load(tmp_path / "model").probabilities(sequences), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    data = tmp_path / "data.csv"
    rows = [(sequence, ("cytosol", "membrane")[at % 2]) for at, sequence in enumerate(sequences * 3)]
    with data.open("w", newline="") as handle:
        csv.writer(handle).writerows([("sequence", "label"), *rows])
    scores = plft.evaluate(tmp_path / "model", data)
    assert (scores["n"], scores["task"]) == (6, "seq_classification")
    predict(tmp_path / "model", data, tmp_path / "out.csv")
    assert list(columns(tmp_path / "out.csv")[0]) == ["id", "prediction", "probability_cytosol", "probability_membrane"]


def test_a_token_classifier_answers_for_residues_by_its_own_names(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "model", "protbert", residues=True, **named("helix", "strand", "coil"))
    predicted = plft.load(tmp_path / "model").predict("MKTAY")
    ids = tiny.checkpoint("protbert").residue_tokenizer.encode("MKTAY").input_ids
    logits = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0, 1:-1]
    assert predicted == [[("helix", "strand", "coil")[at] for at in logits.argmax(-1)]]


def test_problem_types_are_read_off_the_configuration(tmp_path: Path) -> None:
    save_classifier(tmp_path / "many", "esm2", False, problem_type="multi_label_classification", **named("a", "b", "c"))
    assert plft.load(tmp_path / "many").labels == LabelSpace(TaskType.SEQ_MULTILABEL, ("a", "b", "c"))
    save_classifier(tmp_path / "one", "esm2", False, problem_type="regression", **named("LABEL_0"))
    predictor = plft.load(tmp_path / "one")
    assert predictor.labels.task is TaskType.SEQ_REGRESSION
    assert isinstance(predictor.predict("MKTAY")[0], float)
    save_classifier(tmp_path / "two", "esm2", False, problem_type="regression", **named("ph", "temperature"))
    assert set(plft.load(tmp_path / "two").predict("MKTAY")[0]) == {"ph", "temperature"}


def test_classes_that_nobody_named_are_numbers() -> None:
    from transformers import EsmConfig

    assert labels_of_config(EsmConfig(num_labels=3), residues=False).classes == ("0", "1", "2")
    assert labels_of_config(EsmConfig(num_labels=1), residues=True).task is TaskType.TOKEN_REGRESSION


def test_a_model_without_a_head_is_refused(base: Path) -> None:
    with pytest.raises(PlftError, match=r"has no trained head \(EsmModel\)"):
        plft.load(base)


# --- a head of your own


class PhHead(nn.Module):
    """Uses an extra column."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.output = nn.Linear(33, outputs)

    def forward(self, hidden_states, attention_mask, ph):
        mask = attention_mask.unsqueeze(-1).float()
        pooled = (hidden_states * mask).sum(1) / mask.sum(1)
        return self.output(torch.cat([pooled, ph.unsqueeze(-1)], dim=-1))


def test_a_head_of_your_own_is_saved_and_loaded_with_its_extra_columns(tmp_path: Path) -> None:
    rows = columns(small_run.write_table(tmp_path / "plain.csv"))
    with (tmp_path / "data.csv").open("w", newline="") as handle:
        table = csv.DictWriter(handle, [*rows[0], "ph"])
        table.writeheader()
        table.writerows(row | {"ph": str(4 + at % 5)} for at, row in enumerate(rows))
    values = small_run.values(tmp_path / "data.csv", data={"file": str(tmp_path / "data.csv"), "extra_columns": ["ph"]})
    run = plft.finetune(values, tmp_path / "run", head=PhHead())
    assert run.metrics["splits"]["test"]["n"] == 12

    with pytest.raises(PlftError, match=r"made with a head of your own \(PhHead\)"):
        plft.load(tmp_path / "run")
    with pytest.raises(PlftError, match="does not fit this model"):
        plft.load(tmp_path / "run", head=PhHead(outputs=2))
    predictor = plft.load(tmp_path / "run", head=PhHead())
    test = [each for each in read_records(tmp_path / "data.csv", Columns(extra=("ph",))) if each.split == "test"]
    assert predictor.predict(test) == [row["prediction"] for row in columns(tmp_path / "run/predictions/test.csv")]


# --- damage and atomic writing


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: (model / "trained.safetensors").unlink(), "trained.safetensors is missing"),
        (lambda model: (model / "trained.safetensors").write_bytes(b"xx"), "trained.safetensors is damaged"),
        (lambda model: (model / "adapter/adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda model: (model / "plft.json").write_text("{"), "plft.json is damaged"),
        (lambda model: (model / "plft.json").write_text('{"format": 9}'), "written by another version of plft"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(lora_run: Path, tmp_path: Path, damage, message: str) -> None:
    shutil.copytree(lora_run / "model", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(PlftError, match=message):
        load_predictor(tmp_path / "model")


def test_weights_that_are_not_all_there_are_named(lora_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(lora_run / "model", tmp_path / "model")
    state = load_file(tmp_path / "model/trained.safetensors")
    lost = next(name for name in state if name.startswith("head."))
    save_file({name: each for name, each in state.items() if name != lost}, tmp_path / "model/trained.safetensors")
    with pytest.raises(PlftError, match=f"lacks '{lost}'"):
        load_predictor(tmp_path / "model")


def test_a_folder_is_replaced_in_one_go_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with new_folder(target) as partial:
        (partial / "file").write_text("first")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), new_folder(target) as partial:
        (partial / "no such folder" / "file").write_text("second")
    assert (target / "file").read_text() == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_json_files_are_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ö": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"ö": [1, 2]}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


# --- models on the hub keep their revision


def test_a_name_with_a_revision_is_kept_as_name_and_revision(base: Path) -> None:
    from dataclasses import replace

    from plft.checkpoints import resolve

    checkpoint = resolve(str(base))
    assert checkpoint.lasting_name == str(base.resolve())
    on_the_hub = replace(checkpoint, name="owner/model@main", revision="0" * 40)
    assert on_the_hub.lasting_name == "owner/model"
    assert resolve("scratch:tiny-esm2").lasting_name == "scratch:tiny-esm2"


def test_batches_of_an_exported_model_are_those_of_the_run(lora_run: Path, tmp_path: Path) -> None:
    export_model(RunFolder(lora_run).model, tmp_path / "export")
    rows = records("esm2", TaskType.SEQ_CLASSIFICATION)
    one, other = (load_anything(each).dataset(rows, labelled=False) for each in (lora_run, tmp_path / "export"))
    first, second = (collate(list(each), None, each.pad_token_id, False) for each in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
