"""For every valid family x task x tuning method: what must hold for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from grid import GRID, QUICK, built, records
from plft.batching import collate
from plft.labels import LabelSpace, TaskType
from plft.model import infer
from plft.runfolder import load_predictor, save_model

CELLS = [pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow) for cell in GRID]
IS_TRAINED = {  # which weights a method may touch, by name alone
    "head": lambda name, last: False,
    "last-1": lambda name, last: last in name or is_final_norm(name),
    "lora": lambda name, last: ".lora_" in name,
    "dora": lambda name, last: ".lora_" in name,
    "qlora": lambda name, last: ".lora_" in name,
    "ia3": lambda name, last: ".ia3_" in name,
    "adapter": lambda name, last: ".bottleneck." in name,
    "full": lambda name, last: True,
}


def is_final_norm(name: str) -> bool:
    return name.removeprefix("backbone.") in {
        f"{stem}.{kind}"
        for stem in ("encoder.emb_layer_norm_after", "encoder.final_layer_norm", "norm", "ln_f")
        for kind in ("weight", "bias")
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trained models of this module are kept for the fresh process at its end."""
    return tmp_path_factory.mktemp("saved")


@pytest.mark.parametrize(("family", "task", "method"), CELLS)
def test_training_touches_what_it_should_and_survives_saving(family: str, task: str, method: str, saved: Path) -> None:
    torch.manual_seed(0)
    model, dataset, card = built(family, task, method)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    first, last, with_gradient = train(model, dataset)
    assert last < first, "the loss falls"

    last_block = f"{tiny.checkpoint(family).family.blocks}.1."  # tiny models have two blocks
    intended = {name for name in before if name.startswith("head.") or IS_TRAINED[method](name, last_block)}
    assert {name for name, each in model.named_parameters() if each.requires_grad} == intended
    assert with_gradient == intended, "exactly the intended parameters received gradients"
    frozen = {name: each for name, each in model.named_parameters() if name not in intended}
    assert all(torch.equal(each, before[name]) for name, each in frozen.items()), "frozen weights are bit-identical"

    # a 4-bit backbone computes in bf16, whose rounding (2**-8) depends on the shape of the batch
    assert_padding_and_order_change_nothing(model, dataset, 5e-3 if method == "qlora" else 2e-5)

    labels = dataset.labels
    outputs = infer(model, dataset, labels, budget=400)
    folder = saved / f"{family}-{task}-{method}"
    save_model(folder, model, card, tiny.checkpoint(family))
    again = load_predictor(folder)
    reloaded = again.outputs(again.dataset(records(family, TaskType(task)), labelled=False))
    for one, other in zip(outputs, reloaded, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    content = [each.tolist() for each in again.probabilities([r.sequence for r in records(family, TaskType(task))])]
    (folder / "expected.json").write_text(json.dumps(content))


def train(model, dataset, steps: int = 15):
    """A plain loop on one batch: first and last loss, and the names of parameters that got a gradient other than 0."""
    batch = collate(list(dataset), dataset.labels, dataset.pad_token_id, dataset.is_residue_task)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-3)
    losses, with_gradient = [], set()
    model.eval()  # dropout off, so that the loss of the same batch can be compared
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        with_gradient |= {
            name for name, each in model.named_parameters() if each.grad is not None and each.grad.abs().sum() > 0
        }
        optimizer.step()
        optimizer.zero_grad()
    return losses[0], losses[-1], with_gradient


def assert_padding_and_order_change_nothing(model, dataset, tolerance: float) -> None:
    """Each example alone gives what it gives in a padded batch, whatever the order of the batch."""
    examples = list(dataset)
    together = logits_of(model, dataset, examples)
    shuffled = [5, 2, 7, 0, 3, 1, 6, 4]
    permuted = logits_of(model, dataset, [examples[at] for at in shuffled])
    for place, at in enumerate(shuffled):
        n_residues = len(examples[at].residue_tokens)
        alone = logits_of(model, dataset, [examples[at]])[0]
        for other in (together[at], permuted[place]):
            cut = other[:n_residues] if dataset.is_residue_task else other
            torch.testing.assert_close(alone, cut, rtol=5 * tolerance, atol=tolerance)


def logits_of(model, dataset, examples):
    with torch.no_grad():
        return model(**collate(examples, None, dataset.pad_token_id, dataset.is_residue_task)).logits


def test_a_fresh_process_predicts_the_same_from_every_saved_model(saved: Path) -> None:
    folders = sorted(each.parent for each in saved.glob("*/expected.json"))
    if not folders:
        pytest.skip("no model was saved: run the whole module")
    script = Path(__file__).with_name("reload_all.py")
    done = subprocess.run([sys.executable, script, saved], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(len(folders))


def test_label_space_round_trip_keeps_the_units(saved: Path) -> None:
    labels = LabelSpace.fit(TaskType.SEQ_REGRESSION, records("esm2", TaskType.SEQ_REGRESSION))
    assert LabelSpace.from_json(json.loads(json.dumps(labels.to_json()))) == labels
