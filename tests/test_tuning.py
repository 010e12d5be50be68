"""Which weights train: targets, blocks, layer norms, quantisation, and known parameter counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from plft.batching import collate
from plft.checkpoints import meta_backbone
from plft.config import TuningConfig
from plft.dataset import build_dataset
from plft.errors import PlftError
from plft.families import FAMILIES
from plft.heads import MLPHead
from plft.labels import TaskType
from plft.model import PLMTaskModel
from plft.records import Record
from plft.tuning import METHODS, apply, check_settings, count_parameters, find_method, is_norm, quantization_config


def tuned(family: str, **settings: object) -> nn.Module:
    checkpoint = tiny.checkpoint(family)
    config = TuningConfig(**settings)
    quantization = quantization_config() if find_method(config.method).quantizes else None
    return apply(checkpoint.load_backbone(quantization_config=quantization), checkpoint.family, config)


def trained(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


# --- known answers


def test_prott5_xl_has_the_published_numbers_of_parameters() -> None:
    backbone = meta_backbone("prott5-xl")
    assert count_parameters(backbone)[1] == 1_208_141_824
    with torch.device("meta"):
        head = MLPHead(input_dim=1024, hidden_dim=1024, output_dim=2)
    model = PLMTaskModel(TaskType.SEQ_CLASSIFICATION, backbone, head)
    assert count_parameters(model)[1] == 1_209_193_474, "the total of the published tutorial"
    apply(backbone, FAMILIES["prott5"], TuningConfig(method="lora", rank=4))
    added = count_parameters(model)[1] - 1_209_193_474
    assert added == 1_966_080
    assert count_parameters(model)[0] == added + 1024 * 1024 + 1024 + 1024 * 2 + 2


@pytest.mark.parametrize("family", ["esm2", "prott5", "protgpt2"])
def test_four_bit_weights_count_as_the_numbers_they_stand_for(family: str) -> None:
    assert count_parameters(tuned(family, method="qlora")) == count_parameters(tuned(family, method="lora"))


# --- targets


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "ia3"])
def test_targets_that_match_nothing_are_an_error_that_names_the_layers_there_are(method: str) -> None:
    with pytest.raises(PlftError, match=r"no layer of this model is called 'q_proj', 'nonsense'\. .*dense, key, query"):
        tuned("esm2", method=method, targets=["query", "q_proj", "nonsense"])


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_targets_of_the_users_choice_are_the_only_ones(method: str) -> None:
    names = trained(tuned("esm2", method=method, targets=["value"]))
    assert names
    assert all(".attention.self.value." in name for name in names)


@pytest.mark.parametrize("family", tiny.KNOWN)
def test_the_targets_of_every_family_exist(family: str) -> None:
    for method in ("lora", "ia3"):
        assert trained(tuned(family, method=method))


def test_an_unknown_model_gets_low_rank_updates_on_all_linear_layers_of_its_blocks() -> None:
    names = trained(tuned("generic", method="lora"))
    tuned_layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in names}
    assert {"query", "key", "value", "dense"} <= tuned_layers


# --- blocks and layer norms


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "ia3", "adapter"])
@pytest.mark.parametrize("family", ["esm2", "prott5", "protgpt2", "mistral-dna", "generic"])
def test_blocks_restricts_adapters_to_the_last_blocks(family: str, method: str) -> None:
    names = trained(tuned(family, method=method, blocks="last-1"))
    path = tiny.checkpoint(family).family.blocks
    assert names
    assert all(f"{path}.1." in name for name in names)


@pytest.mark.parametrize("method", ["full", "head", "last-1"])
def test_blocks_is_refused_where_it_would_have_no_effect(method: str) -> None:
    with pytest.raises(PlftError, match=r"tuning.blocks .* Use tuning.method last-1"):
        check_settings(TuningConfig(method=method, blocks="last-1"))


@pytest.mark.parametrize("method", ["full", "head", "adapter", "last-1"])
def test_targets_are_refused_where_they_would_have_no_effect(method: str) -> None:
    with pytest.raises(PlftError, match=r"tuning.targets .* lora, dora, qlora, ia3"):
        check_settings(TuningConfig(method=method, targets=["query"]))


@pytest.mark.parametrize("setting", [{"method": "last-3"}, {"method": "lora", "blocks": "last-3"}])
def test_more_blocks_than_there_are_is_an_error(setting: dict[str, str]) -> None:
    with pytest.raises(PlftError, match="last-3: the model has only 2 blocks"):
        tuned("esm2", **setting)


@pytest.mark.parametrize("method", ["head", "lora", "adapter", "last-1", "qlora"])
@pytest.mark.parametrize("family", ["esm2", "prott5", "esmc", "mistral-dna"])
def test_the_switch_trains_every_layer_norm_and_nothing_else_on_top(family: str, method: str) -> None:
    without, with_norms = tuned(family, method=method), tuned(family, method=method, train_layer_norms=True)
    norms = {
        f"{name}.{weight}"
        for name, each in with_norms.named_modules()
        if is_norm(each)
        for weight, _ in each.named_parameters()
    }
    assert norms
    assert trained(with_norms) == trained(without) | norms


# --- quantisation


@pytest.mark.parametrize("family", ["esm2", "protbert", "prott5", "mistral-dna", "protgpt2"])
def test_only_linear_layers_of_the_backbone_are_quantised(family: str) -> None:
    backbone = tuned(family, method="qlora")
    width = tiny.checkpoint(family).width
    model = PLMTaskModel(TaskType.SEQ_CLASSIFICATION, backbone, MLPHead(width, width, 2))
    quantised = [name for name, each in model.named_modules() if type(each).__name__ == "Linear4bit"]
    blocks = f"{tiny.checkpoint(family).family.blocks}."
    assert quantised
    assert all(name.startswith("backbone.") and blocks in name for name in quantised)
    assert all(each.dtype is torch.float32 for each in model.head.parameters())
    state = next(each.quant_state for each in model.parameters() if hasattr(each, "quant_state"))
    assert (state.quant_type, state.nested) == ("nf4", True), "nf4, double quantisation"


# --- bottleneck adapters


@pytest.mark.parametrize("family", tiny.TINY)
def test_bottleneck_adapters_start_as_the_identity(family: str) -> None:
    checkpoint = tiny.checkpoint(family)
    record = Record("s", tiny.sequence(checkpoint))
    dataset = build_dataset([record], checkpoint.residue_tokenizer, None, is_residue_task=False, max_residues=99)
    batch = collate(list(dataset), None, dataset.pad_token_id, False)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    plain, adapted = checkpoint.load_backbone().eval(), tuned(family, method="adapter", bottleneck=4).eval()
    assert any(name.endswith("bottleneck.down.weight") for name in trained(adapted))
    torch.testing.assert_close(adapted(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)


@pytest.mark.parametrize(
    ("method", "width", "rate"),
    [
        ("full", 1280, 3e-5),
        ("full", 160, 2.4e-4),  # 8 times as narrow: 8 times the rate
        ("full", 5120, 3e-5),
        ("lora", 1280, 5e-4),
        ("lora", 320, 1e-3),  # 4 times as narrow: twice the rate
        ("head", 160, 1e-3),
    ],
)
def test_narrower_pretrained_backbones_are_tuned_at_larger_rates(method, width, rate):
    assert METHODS[method].rate(width, is_scratch=False) == pytest.approx(rate)
    assert METHODS[method].rate(width, is_scratch=True) == METHODS[method].scratch_learning_rate


# --- names


def test_methods_are_found_by_name() -> None:
    assert find_method("last-7") is METHODS["last-N"]
    assert find_method("full").name == "full"
    for wrong in ("lroa", "last-N", "last-0", "last-", ""):
        with pytest.raises(PlftError, match="Unknown tuning method"):
            find_method(wrong)
    with pytest.raises(PlftError, match="Did you mean 'lora'"):
        find_method("lroa")


def test_parts_that_no_output_depends_on_never_train() -> None:
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    assert bert.pooler is not None
    apply(bert, FAMILIES["protbert"], TuningConfig(method="full"))
    assert not any(each.requires_grad for each in bert.pooler.parameters())
    assert all(each.requires_grad for each in bert.encoder.parameters())
