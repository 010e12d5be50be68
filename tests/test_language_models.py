"""A checkpoint with its language-model head: fresh or read back, and refused where it has none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from plft.checkpoints import resolve
from plft.errors import PlftError
from plft.language_models import load_language_model


def answers(model, checkpoint):
    """Logits for one sequence; a decoder reads the first ten tokens."""
    ids = checkpoint.residue_tokenizer.encode(tiny.sequence(checkpoint, 30)).input_ids
    inputs = {"input_ids": torch.tensor([ids.tolist()])}
    if checkpoint.family.objective == "span":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :10]
    with torch.no_grad():
        return model.eval()(**inputs).logits


def save(model, checkpoint, folder: Path) -> str:
    model.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", tiny.TINY)
def test_a_folder_gives_back_the_model_that_was_saved(family, tmp_path):
    checkpoint = tiny.checkpoint(family)
    model = load_language_model(checkpoint)
    again = resolve(save(model, checkpoint, tmp_path))
    assert again.family == checkpoint.family
    assert torch.equal(answers(load_language_model(again), again), answers(model, checkpoint))


@pytest.mark.parametrize("family", ["esm2", "prott5", "protgpt2"])
def test_random_weights_depend_on_the_seed_alone(family):
    one, two = (replace(tiny.checkpoint(family), seed=seed) for seed in (1, 2))
    torch.manual_seed(5)
    first = load_language_model(one).state_dict()
    torch.manual_seed(6)
    second, other = load_language_model(one).state_dict(), load_language_model(two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], each) for name, each in other.state_dict().items())


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_language_model(tiny.checkpoint("esm2"))
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_were_saved_in_bf16_are_read_in_fp32(tmp_path):
    checkpoint = tiny.checkpoint("esm2")
    fresh = load_language_model(checkpoint).to(torch.bfloat16)
    read = load_language_model(resolve(save(fresh, checkpoint, tmp_path)))
    assert {each.dtype for each in read.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["esm2", "dna", "esmc", "protbert", "prott5", "ankh", "mistral-dna", "generic"])
def test_an_encoder_alone_is_refused_in_one_line(family, tmp_path):
    folder = tiny.save(tiny.checkpoint(family), tmp_path)
    with pytest.raises(PlftError, match="holds no language-model head") as caught:
        load_language_model(resolve(str(folder)))
    assert "\n" not in str(caught.value)


def test_missing_weights_of_the_backbone_are_not_called_a_missing_head(tmp_path):
    checkpoint = tiny.checkpoint("esm2")
    save(load_language_model(checkpoint), checkpoint, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["esm.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(PlftError, match=r"would stay random: .*layer\.1\.output\.dense\.weight"):
        load_language_model(resolve(str(tmp_path)))


def test_damaged_weights_are_refused_in_one_line(tmp_path):
    checkpoint = tiny.checkpoint("esm2")
    save(load_language_model(checkpoint), checkpoint, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(PlftError, match="its weights cannot be loaded"):
        load_language_model(resolve(str(tmp_path)))
