"""Heads and poolings: worked out by hand, blind to padding and special tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plft.config import ModelConfig
from plft.errors import PlftError
from plft.heads import (
    HEADS,
    POOLINGS,
    AttentionPooling,
    CNNHead,
    LightAttentionHead,
    LinearHead,
    MLPHead,
    build_head,
    first_token,
    max_over_residues,
    mean_over_residues,
)

# one sequence of two residues between <cls> and <eos> and one of one residue, padded
HIDDEN = torch.tensor(
    [[[9.0, 9.0], [1.0, -2.0], [3.0, -4.0], [9.0, 9.0]], [[9.0, 9.0], [5.0, -6.0], [9.0, 9.0], [9.0, 9.0]]]
)
IS_RESIDUE = torch.tensor([[False, True, True, False], [False, True, False, False]])
SHAPES = [(name, mode) for name in HEADS for mode in ("protein", "residue") if mode == "protein" or name[0] != "l"]


def test_the_mean_is_over_residues_only() -> None:
    assert mean_over_residues(HIDDEN, IS_RESIDUE).tolist() == [[2.0, -3.0], [5.0, -6.0]]


def test_the_maximum_is_over_residues_only() -> None:
    assert max_over_residues(HIDDEN, IS_RESIDUE).tolist() == [[3.0, -2.0], [5.0, -6.0]]


def test_cls_is_the_first_token() -> None:
    assert first_token(HIDDEN, IS_RESIDUE).tolist() == [[9.0, 9.0], [9.0, 9.0]]


def test_attention_is_a_softmax_over_residues_only() -> None:
    pooling = AttentionPooling(2)
    with torch.no_grad():
        pooling.score.weight.copy_(torch.tensor([[0.5, 0.0]]))
        pooling.score.bias.fill_(7.0)
    weight = torch.tensor([0.5, 1.5]).exp() / torch.tensor([0.5, 1.5]).exp().sum()
    expected = weight[0] * HIDDEN[0, 1] + weight[1] * HIDDEN[0, 2]
    torch.testing.assert_close(pooling(HIDDEN, IS_RESIDUE), torch.stack([expected, HIDDEN[1, 1]]))


@pytest.mark.parametrize("name", ["mean", "max", "attention"])
def test_a_sequence_without_residues_pools_to_zero(name: str) -> None:
    pooled = POOLINGS[name](2)(HIDDEN, torch.zeros(2, 4, dtype=torch.bool))
    assert pooled.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_mlp_is_linear_tanh_linear_on_the_mean() -> None:
    head = MLPHead(input_dim=2, hidden_dim=3, output_dim=1).eval()
    _, first, _, _, last = head.mlp
    expected = last(torch.tanh(first(torch.tensor([[2.0, -3.0], [5.0, -6.0]]))))
    torch.testing.assert_close(head(HIDDEN, attention_mask=IS_RESIDUE), expected)


def test_the_depth_of_the_mlp_is_free() -> None:
    def widths(layers: int) -> list[tuple[int, int]]:
        head = MLPHead(4, 6, 2, num_hidden_layers=layers)
        return [(each.in_features, each.out_features) for each in head.modules() if isinstance(each, torch.nn.Linear)]

    assert widths(0) == [(4, 2)]
    assert widths(3) == [(4, 6), (6, 6), (6, 6), (6, 2)]
    linear = LinearHead(4, 6, 2)
    assert [tuple(each.shape) for each in linear.parameters()] == [(2, 4), (2,)]


def test_a_convolution_sees_zeros_beside_the_residues() -> None:
    head = CNNHead(2, 3, 1, num_hidden_layers=1, kernel_size=3, pooling_strategy="mean").eval()
    convolution = head.layers[0].convolution
    alone = torch.relu(torch.nn.functional.conv1d(HIDDEN[:1, 1:3].mT, convolution.weight, convolution.bias, padding=1))
    torch.testing.assert_close(head(HIDDEN[:1], IS_RESIDUE[:1]), head.output(alone.mean(-1)))


def test_light_attention_joins_the_weighted_sum_and_the_maximum() -> None:
    head = LightAttentionHead(2, 3, 1, kernel_size=1).eval()
    values = head.values.convolution(HIDDEN[:1, 1:3].mT)
    weights = head.scores.convolution(HIDDEN[:1, 1:3].mT).softmax(-1)
    joined = torch.cat([(values * weights).sum(-1), values.amax(-1)], dim=-1)
    torch.testing.assert_close(head(HIDDEN[:1], IS_RESIDUE[:1]), head.mlp(joined))


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(["mean", "max", "attention"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 5),
)
def test_padding_and_what_stands_beside_the_residues_change_nothing(
    shape: tuple[str, str], pooling: str, lengths: list[int], extra: int
) -> None:
    name, mode = shape
    torch.manual_seed(0)
    options = {"kernel_size": 5} if name in ("cnn", "light_attention") else {}
    head = HEADS[name].build(4, 6, 3, classification_mode=mode, pooling_strategy=pooling, **options).eval()
    sequences = [torch.randn(length, 4) for length in lengths]
    tokens = max(lengths) + 2 + extra
    hidden, mask = torch.randn(len(lengths), tokens, 4), torch.zeros(len(lengths), tokens)
    for row, each in enumerate(sequences):
        start = 0 if mode == "residue" else 1  # behind <cls>
        hidden[row, start : start + len(each)] = each
        mask[row, start : start + len(each)] = 1
    together = head(hidden, attention_mask=mask)
    for row, each in enumerate(sequences):
        alone = head(each.unsqueeze(0), attention_mask=torch.ones(1, len(each)))[0]
        ours = together[row, : len(each)] if mode == "residue" else together[row]
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "mode"), SHAPES)
def test_outputs_have_the_shape_of_the_labels(name: str, mode: str) -> None:
    head = build_head(name, 2, 5, residues=mode == "residue")
    assert head(HIDDEN, attention_mask=IS_RESIDUE).shape == ((2, 4, 5) if mode == "residue" else (2, 5))


@pytest.mark.parametrize("name", list(HEADS))
def test_without_a_mask_every_position_counts(name: str) -> None:
    head = build_head(name, 2, 1, residues=False).eval()
    torch.testing.assert_close(head(HIDDEN), head(HIDDEN, attention_mask=torch.ones(2, 4)))


def test_every_setting_of_the_configuration_reaches_the_head() -> None:
    head = build_head(
        "cnn",
        8,
        2,
        residues=False,
        num_hidden_layers=3,
        hidden_dim=5,
        dropout_rate=0.4,
        pooling_strategy="attention",
        kernel_size=9,
    )
    assert [tuple(each.convolution.weight.shape) for each in head.layers] == [(5, 8, 9), (5, 5, 9), (5, 5, 9)]
    assert isinstance(head.pooling, AttentionPooling)
    assert head.output[0].p == 0.4


def test_light_attention_does_not_label_residues() -> None:
    with pytest.raises(PlftError, match="cannot label residues"):
        build_head("light_attention", 4, 2, residues=True)


def test_the_table_says_what_each_head_does_by_default() -> None:
    for name, row in HEADS.items():
        assert row.name == name
        assert row.pooling in POOLINGS
        built = build_head(name, 4, 2, residues=False)
        explicit = build_head(
            name, 4, 2, residues=False, num_hidden_layers=row.hidden_layers, pooling_strategy=row.pooling
        )
        assert str(built) == str(explicit)


def test_half_precision_hidden_states_give_finite_outputs() -> None:
    for name in HEADS:
        head = build_head(name, 2, 1, residues=False, pooling_strategy="attention").to(torch.bfloat16)
        assert head(HIDDEN.bfloat16(), attention_mask=IS_RESIDUE).isfinite().all()


def test_names_in_the_configuration_are_those_of_the_tables() -> None:
    fields = ModelConfig.model_fields
    assert set(fields["head"].annotation.__args__) == set(HEADS)
    pooling = next(each for each in fields["pooling"].annotation.__args__ if hasattr(each, "__args__"))
    assert set(pooling.__args__) == set(POOLINGS)
