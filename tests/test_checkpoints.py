"""Names to models: local folders, damaged ones, checkpoints that come with a head."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    EsmForMaskedLM,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
)

import tiny
from plft.checkpoints import resolve
from plft.errors import PlftError
from plft.language_models import load_language_model
from plft.scratch import ARCHITECTURES


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One folder of ESM-2, for tests that spoil a copy of it."""
    return tiny.save(tiny.checkpoint("esm2"), tmp_path_factory.mktemp("esm2"))


@pytest.fixture
def spoiled(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def change_config(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def hidden(checkpoint, n_padding=0, backbone=None):
    """Hidden states of one sequence, with its padding cut off again."""
    backbone = (backbone or checkpoint.load_backbone()).eval()
    ids = torch.tensor(checkpoint.residue_tokenizer.encode(tiny.sequence(checkpoint)).input_ids, dtype=torch.long)[None]
    padded = nn.functional.pad(ids, (0, n_padding), value=checkpoint.tokenizer.pad_token_id)
    mask = nn.functional.pad(torch.ones_like(ids), (0, n_padding))
    with torch.no_grad():
        return backbone(input_ids=padded, attention_mask=mask).last_hidden_state[:, : ids.shape[1]]


# -- every family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.TINY)
def test_a_saved_model_reads_back_with_the_same_family_and_weights(family, tmp_path):
    checkpoint = tiny.checkpoint(family)
    again = resolve(str(tiny.save(checkpoint, tmp_path)))
    assert again.family == checkpoint.family
    assert again.family.name == ARCHITECTURES[f"tiny-{family}"].family
    assert not again.is_scratch
    assert torch.equal(hidden(again), hidden(checkpoint))


@pytest.mark.parametrize("family", tiny.TINY)
def test_padding_changes_nothing(family):
    checkpoint = tiny.checkpoint(family)
    torch.testing.assert_close(hidden(checkpoint, n_padding=7), hidden(checkpoint), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", tiny.TINY)
def test_every_parameter_of_a_backbone_gets_a_gradient(family):
    # what gets none (pooler, contact head, decoder) would stop distributed training
    checkpoint = tiny.checkpoint(family)
    backbone = checkpoint.load_backbone().train()
    ids = torch.tensor(checkpoint.residue_tokenizer.encode(tiny.sequence(checkpoint)).input_ids, dtype=torch.long)[None]
    output = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert output.shape == (1, ids.shape[1], checkpoint.width)
    output.square().sum().backward()
    assert [name for name, each in backbone.named_parameters() if each.grad is None] == []


@pytest.mark.parametrize("family", tiny.TINY)
def test_the_family_row_names_parts_that_are_there(family):
    checkpoint = tiny.checkpoint(family)
    backbone, row = checkpoint.load_backbone(), checkpoint.family
    assert len(backbone.get_submodule(row.blocks)) == checkpoint.config.num_hidden_layers
    names = [name for name, _ in backbone.named_modules()]
    for target in (*row.lora_targets, *row.ia3_targets, *row.ia3_feedforward):
        assert any(name.endswith("." + target) for name in names), target
    assert set(row.ia3_feedforward) <= set(row.ia3_targets)
    assert row.n_special == checkpoint.residue_tokenizer.n_special


@pytest.mark.parametrize("family", tiny.TINY)
def test_dtype_is_the_one_asked_for(family):
    backbone = tiny.checkpoint(family).load_backbone(dtype=torch.bfloat16)
    assert {each.dtype for each in backbone.parameters()} == {torch.bfloat16}


# -- checkpoints that were saved with a head ---------------------------------------------------------------------------


def test_an_encoder_decoder_checkpoint_gives_its_encoder(tmp_path):
    checkpoint = tiny.checkpoint("prott5")
    whole = T5ForConditionalGeneration(checkpoint.config)
    whole.save_pretrained(tmp_path)
    checkpoint.tokenizer.save_pretrained(tmp_path)
    backbone = resolve(str(tmp_path)).load_backbone()
    assert not any("decoder" in name for name, _ in backbone.named_parameters())
    expected = dict(whole.encoder.named_parameters())["block.0.layer.0.SelfAttention.q.weight"]
    assert torch.equal(backbone.get_parameter("encoder.block.0.layer.0.SelfAttention.q.weight"), expected)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("esm2", EsmForMaskedLM),
        ("esm2", AutoModelForSequenceClassification),
        ("protbert", AutoModelForTokenClassification),
        ("esmc", AutoModelForSequenceClassification),
        ("mistral-dna", AutoModelForSequenceClassification),
        ("protgpt2", GPT2LMHeadModel),
    ],
)
def test_a_checkpoint_with_a_head_gives_its_backbone(family, head, tmp_path):
    checkpoint = tiny.checkpoint(family)
    build = head.from_config if hasattr(head, "from_config") else head
    whole = build(checkpoint.config)
    whole.save_pretrained(tmp_path)
    checkpoint.tokenizer.save_pretrained(tmp_path)
    backbone = resolve(str(tmp_path)).load_backbone()
    inside = dict(whole.base_model.named_parameters())
    assert all(torch.equal(each, inside[name]) for name, each in backbone.named_parameters())


def test_esm2_weights_named_as_published_fill_the_model(tmp_path):
    # the files on the hub are of 2022: a prefix, a head, unused positions, and rotary frequencies in every block
    checkpoint = tiny.checkpoint("esm2")
    tiny.save(checkpoint, tmp_path)
    own = load_file(tmp_path / "model.safetensors")
    frequencies = checkpoint.load_backbone().rotary_embeddings.inv_freq
    published = {f"esm.{name}": each for name, each in own.items() if not name.endswith("inv_freq")}
    for block in range(2):
        published[f"esm.encoder.layer.{block}.attention.self.rotary_embeddings.inv_freq"] = frequencies.clone()
    published["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    published["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 32)
    published["esm.contact_head.regression.weight"] = torch.zeros(1, 4)
    published["esm.contact_head.regression.bias"] = torch.zeros(1)
    published["lm_head.bias"] = torch.zeros(33)
    save_file(published, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(hidden(resolve(str(tmp_path))), hidden(checkpoint))


def test_a_padding_id_outside_the_vocabulary_is_put_right(tmp_path):
    checkpoint = tiny.checkpoint("mistral-dna")
    tiny.save(checkpoint, tmp_path)
    change_config(tmp_path, pad_token_id=checkpoint.config.vocab_size)  # as Mistral-Codon was published
    assert resolve(str(tmp_path)).config.pad_token_id == 3


def test_four_bit_weights_work_for_scratch_and_folder_alike(saved):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    for checkpoint in (tiny.checkpoint("esm2"), resolve(str(saved))):
        backbone = checkpoint.load_backbone(quantization_config=settings)
        kinds = {type(each).__name__ for each in backbone.modules()}
        assert "Linear4bit" in kinds


def test_the_digest_is_of_the_weights(saved, spoiled):
    assert resolve(str(saved)).sha256 == resolve(str(spoiled)).sha256
    assert len(resolve(str(saved)).sha256) == 64
    tiny.save(tiny.checkpoint("esm2", seed=1), spoiled)
    assert resolve(str(saved)).sha256 != resolve(str(spoiled)).sha256
    assert tiny.checkpoint("esm2").sha256 is None


# -- one clear line each -----------------------------------------------------------------------------------------------


def without(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter_only(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


WRONG_FOLDERS = {
    "no configuration": (without("config.json"), "has no config.json"),
    "an adapter": (adapter_only, "holds an adapter, not a model"),
    "broken configuration": (write("config.json", b"{"), "config.json cannot be read"),
    "binary configuration": (write("config.json", b"\xff\xfe"), "config.json cannot be read"),
    "no model type": (write("config.json", b"{}"), "does not say its model_type"),
    "a list as configuration": (write("config.json", b"[]"), "does not say its model_type"),
    "unknown model type": (write("config.json", b'{"model_type": "esm9"}'), "cannot use its config.json"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer"),
    "broken tokenizer": (write("tokenizer.json", b"\xff\xfe"), "its tokenizer cannot be read"),
    "broken tokenizer settings": (write("tokenizer_config.json", b"{"), "tokenizer_config.json cannot be read"),
    "no weights": (without("model.safetensors"), "holds no *.safetensors file"),
    "a pickle": (pickle_only, "holds only pytorch_model.bin; weights are read from safetensors only"),
    "smaller model": (lambda folder: change_config(folder, vocab_size=8), "Tokenizer and model do not belong together"),
    "own code": (lambda folder: change_config(folder, auto_map={"AutoModel": "m.M"}), "runs its own Python code (m.M)"),
    "code elsewhere": (
        lambda folder: change_config(folder, auto_map={"AutoModel": "a/b--m.M"}),
        "runs code from another repository (a/b)",
    ),
}


@pytest.mark.parametrize("case", WRONG_FOLDERS)
def test_a_wrong_folder_is_one_clear_line(case, spoiled):
    spoil, message = WRONG_FOLDERS[case]
    spoil(spoiled)
    with pytest.raises(PlftError) as caught:
        resolve(str(spoiled))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_WEIGHTS = {
    "cut file": (cut_weights, "weights cannot be loaded"),
    "no safetensors": (write("model.safetensors", b"not weights"), "weights cannot be loaded"),
    "other width": (lambda folder: change_config(folder, hidden_size=64), "config.json says [33, 64]"),
    "more blocks": (lambda folder: change_config(folder, num_hidden_layers=3), "lacks weights"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_wrong_weights_are_one_clear_line(case, spoiled):
    spoil, message = WRONG_WEIGHTS[case]
    spoil(spoiled)
    with pytest.raises(PlftError) as caught:
        resolve(str(spoiled)).load_backbone()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("esm2-8n", "Did you mean 'esm2-8m'?"),
        ("esm2-0.2m", "Did you mean 'scratch:esm2-0.2m'?"),
        ("./missing", "is not a folder"),
        ("some/where/deep", "is not a folder"),
        ("builtin:rna", "Unknown built-in model 'rna'. Known: protein, dna."),
        ("scratch:", "Unknown scratch model"),
        ("scratch:builtin:rna", "Unknown built-in model 'rna'. Known: protein, dna."),
        ("scratch:./missing", "'./missing' is not a folder"),
        ("", "Unknown model ''"),
    ],
)
def test_a_wrong_name_is_one_clear_line(name, message):
    with pytest.raises(PlftError) as caught:
        resolve(name)
    assert message in str(caught.value)


def test_a_revision_given_twice_is_refused():
    with pytest.raises(PlftError, match="names revision v1, and the revision given is v2"):
        resolve("lab/model@v1", revision="v2")


def test_code_of_a_folder_runs_only_with_consent(spoiled):
    change_config(spoiled, auto_map={"AutoModel": "own.OwnModel"})
    (spoiled / "own.py").write_text("from transformers import EsmModel\nclass OwnModel(EsmModel):\n    pass\n")
    with pytest.raises(PlftError, match="if you trust it pass --trust-remote-code"):
        resolve(str(spoiled))
    checkpoint = resolve(str(spoiled), trust_remote_code=True)
    assert checkpoint.trust_remote_code
    assert type(checkpoint.load_backbone()).__name__ == "OwnModel"
    with pytest.raises(PlftError, match="if you trust it pass --trust-remote-code"):
        resolve(f"scratch:{spoiled}")
    fresh = resolve(f"scratch:{spoiled}", trust_remote_code=True)
    assert type(fresh.load_backbone()).__name__ == "OwnModel"
    head = "from transformers import EsmForMaskedLM\nclass OwnHead(EsmForMaskedLM):\n    pass\n"
    (spoiled / "own.py").write_text((spoiled / "own.py").read_text() + head)
    change_config(spoiled, auto_map={"AutoModel": "own.OwnModel", "AutoModelForMaskedLM": "own.OwnHead"})
    fresh = resolve(f"scratch:{spoiled}", trust_remote_code=True)
    assert type(load_language_model(fresh)).__name__ == "OwnHead"
