"""What a frozen part of the network produced, kept: nothing changes but the time it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import plft.keeping
import small_run
import tiny
from plft.attention import fuse, run_padded, use_packing
from plft.config import ModelConfig, TuningConfig
from plft.features import Prefix, run_from, states_before
from plft.heads import MLPHead
from plft.labels import LabelSpace, TaskType
from plft.language_models import load_language_model
from plft.pipeline import train
from plft.runfolder import build_model

LABELS = LabelSpace(TaskType.SEQ_CLASSIFICATION, classes=("a", "b"))


def built(family: str = "esm2", head: str = "mlp", **tuning) -> nn.Module:
    """A tiny model with its tuning method applied."""
    return build_model(tiny.checkpoint(family), LABELS, ModelConfig(head=head), TuningConfig(**tuning))


@pytest.mark.parametrize(
    ("head", "tuning", "expected"),
    [
        ("mlp", {"method": "head"}, Prefix(None, pooled=True)),
        ("linear", {"method": "head"}, Prefix(None, pooled=True)),
        ("cnn", {"method": "head"}, Prefix(None)),
        ("light_attention", {"method": "head"}, Prefix(None)),
        ("mlp", {"method": "last-1"}, Prefix(1)),
        ("mlp", {"method": "lora", "blocks": "last-1"}, Prefix(1)),
        ("mlp", {"method": "adapter", "blocks": "last-1"}, Prefix(1)),
        ("mlp", {"method": "lora"}, Prefix(0)),
        ("mlp", {"method": "full"}, Prefix(0)),
        ("mlp", {"method": "last-1", "train_layer_norms": True}, Prefix(0)),
    ],
)
def test_the_prefix_ends_at_the_first_block_that_trains(head, tuning, expected):
    model = built(head=head, **tuning)
    assert len(model.backbone.get_submodule("encoder.layer")) == 2
    assert Prefix.of(model.backbone, model.head) == expected


def test_a_learned_pooling_needs_every_residue():
    model = build_model(tiny.checkpoint("esm2"), LABELS, ModelConfig(pooling="attention"), TuningConfig(method="head"))
    assert Prefix.of(model.backbone, model.head) == Prefix(None)


def test_while_all_of_the_backbone_is_kept_only_the_head_changes_its_mode():
    model = built("protbert", method="head").eval()
    model.kept_prefix = model.prefix
    assert model.train().training
    assert all(each.training for each in model.head.modules())
    assert not any(each.training for each in model.backbone.modules())
    assert not any(each.training for each in model.eval().modules())


@pytest.mark.parametrize("family", tiny.packable())
def test_a_network_cut_in_two_gives_what_it_gives_in_one_piece(family):
    model = load_language_model(tiny.checkpoint(family)).eval().base_model
    use_packing(model)
    fuse(model)
    ids = torch.randint(5, 9, (3, 12))
    mask = (torch.arange(12) < torch.tensor([[7], [12], [3]])).long()
    whole = run_padded(model, ids, mask)
    before = states_before(model, 1, ids, mask)
    assert torch.equal(run_from(model, 1, before, ids, mask), whole)
    assert torch.equal(run_padded(model, ids, mask), whole)  # its blocks are all there again


def test_dropout_in_the_frozen_part_is_off_in_training_and_on_above():
    model = built("protbert", method="last-1").train()
    blocks = model.backbone.get_submodule("encoder.layer")
    assert not any(each.training for each in blocks[0].modules())
    assert all(each.training for each in blocks[1].modules())
    assert not model.backbone.embeddings.dropout.training
    assert all(each.training for each in built("protbert", method="full").train().modules())


RUNS = [
    ("scratch:tiny-esm2", "mlp", {"method": "head"}),
    ("scratch:tiny-esm2", "cnn", {"method": "head"}),
    ("scratch:tiny-prott5", "mlp", {"method": "head"}),
    ("scratch:tiny-protbert", "mlp", {"method": "last-1"}),
    ("scratch:tiny-esm2", "mlp", {"method": "lora", "blocks": "last-1"}),
]


@pytest.mark.parametrize("task", [TaskType.SEQ_CLASSIFICATION, TaskType.TOKEN_CLASSIFICATION])
@pytest.mark.parametrize(("model", "head", "tuning"), RUNS)
@pytest.mark.usefixtures("unscored")
def test_training_on_kept_features_is_the_same_training(tmp_path, monkeypatch, model, head, tuning, task):
    monkeypatch.setenv("PLFT_CACHE", str(tmp_path / "cache"))
    data = small_run.write_table(tmp_path / "data.csv", task)
    said: dict[str, list[str]] = {"auto": [], "off": []}
    for how, lines in said.items():
        settings = {"model": {"name": model, "head": head}, "tuning": tuning, "training": {"features": how}}
        train(small_run.config(data, **settings), tmp_path / how, say=lines.append)
    assert any("is frozen: its output is computed once and kept" in line for line in said["auto"])
    assert not any("is frozen" in line for line in said["off"])
    found, expected = (small_run.history(tmp_path / how) for how in said)
    assert len(found) == len(expected)
    for row, same in zip(found, expected, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6, nan_ok=True)
    weights, plain = (load_file(tmp_path / how / "model" / "trained.safetensors") for how in said)
    assert all(torch.allclose(weights[name], each, atol=1e-5) for name, each in plain.items())
    assert not any((tmp_path / "cache").rglob("*.bin"))


@pytest.mark.usefixtures("unscored")
def test_features_that_are_kept_serve_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PLFT_CACHE", str(tmp_path / "cache"))
    data = small_run.write_table(tmp_path / "data.csv")
    computed = []
    states_of = plft.keeping.states_of

    def counted(trainer, dataset):
        of = states_of(trainer, dataset)
        return lambda batches: computed.extend(map(len, batches)) or of(batches)

    monkeypatch.setattr(plft.keeping, "states_of", counted)
    for name, training in (("a", {}), ("b", {"learning_rate": 1e-4}), ("c", {"features": "bf16"})):
        config = small_run.config(data, tuning={"method": "head"}, training={"keep_features": True} | training)
        train(config, tmp_path / name)
        if name != "c":
            assert sum(computed) == 48  # 36 sequences to train on and 12 to validate with, once
    assert sum(computed) == 96
    sizes = sorted(each.stat().st_size for each in (tmp_path / "cache").rglob("*.bin"))
    width = tiny.checkpoint("esm2").width
    assert sizes == sorted(n * width * item for n in (36, 12) for item in (4, 2))


@pytest.mark.usefixtures("unscored")
def test_features_are_left_out_where_a_run_ends_before_it_would_read_them_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("PLFT_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    data = small_run.write_table(tmp_path / "data.csv")
    config = small_run.config(data, tuning={"method": "head"}, training={"max_steps": 3})
    train(config, tmp_path / "run", say=said.append)
    assert not any("is frozen" in line for line in said)


@pytest.mark.usefixtures("unscored")
def test_features_are_left_out_where_the_disk_has_no_room(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PLFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("plft.keeping.fits", lambda folder, size: False)
    said: list[str] = []
    data = small_run.write_table(tmp_path / "data.csv")
    train(small_run.config(data, tuning={"method": "head"}), tmp_path / "run", say=said.append)
    assert any("the disk has no room" in line for line in said)
    assert not any("computed once" in line for line in said)


class OwnMaximum(MLPHead):
    """A head that looks at the residues itself, whatever its parent does."""

    def forward(self, hidden_states, attention_mask=None, **extra):
        return self.mlp(hidden_states.amax(1))


def test_a_head_that_changes_its_parent_sees_every_residue():
    backbone = built(method="head").backbone
    assert Prefix.of(backbone, MLPHead(16, 8, 2)) == Prefix(None, pooled=True)
    assert Prefix.of(backbone, OwnMaximum(16, 8, 2)) == Prefix(None)


def test_embeddings_below_frozen_blocks_are_part_of_what_never_changes():
    model = built("protgpt2", method="last-1")
    frozen = model.prefix.modules(model.backbone)
    names = {name for name, each in model.backbone.named_children() if any(each is module for module in frozen)}
    assert names == {"wte", "wpe", "drop"}
