"""Packed rows against one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.esm.modeling_esm import EsmIntermediate

import tiny
from plft import attention
from plft.attention import (
    PACKED,
    Packing,
    SpelledOut,
    _turned,
    can_pack,
    fuse,
    packed_attention,
    run_packed,
    run_padded,
    use_packing,
)
from plft.language_models import load_language_model

BACKBONES = [name for name in tiny.TINY if can_pack(tiny.checkpoint(name).load_backbone())]
LETTERS = {"dna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}


def rows(family: str, lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    """Token ids of random sequences, longest first, a few tokens masked where the family has a mask."""
    checkpoint = tiny.checkpoint(family)
    random = np.random.default_rng(seed)
    letters = list(LETTERS[checkpoint.family.alphabet])
    sequences = ["".join(random.choice(letters, length)) for length in lengths]
    ids = [
        torch.tensor(each.input_ids, dtype=torch.long) for each in checkpoint.residue_tokenizer.encode_all(sequences)
    ]
    if checkpoint.tokenizer.mask_token_id is not None:
        for each in ids[::2]:
            each[1 : 1 + len(each) // 4] = checkpoint.tokenizer.mask_token_id
    return sorted(ids, key=len, reverse=True)


def both_ways(family: str, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, list, list]:
    """Hidden states one by one and packed, and the gradients of both."""
    ids = rows(family, lengths)
    results, gradients = [], []
    for packed in (False, True):
        model = load_language_model(tiny.checkpoint(family)).eval()
        if packed:
            use_packing(model)
            hidden = run_packed(model.base_model, torch.cat(ids), Packing.of([len(each) for each in ids]))
        else:
            hidden = torch.cat([model.base_model(input_ids=each[None]).last_hidden_state[0] for each in ids])
        weights = torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)
        (hidden * weights).sum().backward()
        results.append(hidden.detach())
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    return results[0], results[1], gradients[0], gradients[1]


@pytest.mark.parametrize("family", tiny.packable())
def test_packed_equals_one_by_one_in_outputs_and_gradients(family):
    alone, packed, gradients_alone, gradients_packed = both_ways(family, [60, 60, 31, 60, 12])
    assert torch.allclose(packed, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
    assert gradients_packed.keys() == gradients_alone.keys()
    largest = max(
        float(gradient.abs().max()) for gradient in gradients_alone.values()
    )  # some are zero but for rounding
    for name, gradient in gradients_alone.items():
        assert torch.allclose(gradients_packed[name], gradient, rtol=1e-4, atol=1e-5 * largest), name


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_packing_holds_for_any_lengths(lengths):
    alone, packed, _, _ = both_ways("esm2", lengths)
    assert torch.allclose(packed, alone, atol=1e-5)


def test_most_families_pack_and_t5_does_not():
    assert {"esm2", "esm1b", "esmc", "protbert", "mistral-dna", "protgpt2", "nucleotide-transformer", "dna"} <= set(
        tiny.packable()
    )
    assert not can_pack(load_language_model(tiny.checkpoint("prott5")))  # with its decoder
    assert {*tiny.packable(), "prott5", "ankh"} <= set(BACKBONES)


def test_runs_positions_and_sequence_numbers_follow_the_lengths():
    packing = Packing.of([3, 3, 1])
    assert packing.runs == [(3, 2), (1, 1)]
    assert packing.position_ids().tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert packing.sequence_ids().tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_token_dropout_counts_masks_per_sequence_and_not_per_row():
    model = load_language_model(tiny.checkpoint("esm2")).eval()
    use_packing(model)
    mask = tiny.checkpoint("esm2").tokenizer.mask_token_id
    masked, plain = torch.tensor([0, mask, mask, 7, 2]), torch.tensor([0, 5, 6, 7, 2])
    together = run_packed(model.base_model, torch.cat([masked, plain]), Packing.of([5, 5]))
    assert torch.allclose(together[5:], run_packed(model.base_model, plain, Packing.of([5])), atol=1e-6)


@pytest.mark.parametrize("family", tiny.packable())
def test_a_model_switched_to_packing_still_takes_padded_batches(family):
    checkpoint = tiny.checkpoint(family)
    ids = torch.nn.utils.rnn.pad_sequence(
        rows(family, [20, 13, 5]), batch_first=True, padding_value=checkpoint.residue_tokenizer.pad_token_id
    )
    mask = (torch.arange(ids.shape[1]) < torch.tensor([[len(each)] for each in rows(family, [20, 13, 5])])).long()
    model = load_language_model(checkpoint).eval()
    expected = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].detach()
    use_packing(model)
    assert model.config._attn_implementation == PACKED
    found = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("lengths", [[7, 20, 20, 3], [9]])
def test_a_padded_batch_run_as_a_row_gives_the_same_states_and_gradients(family, lengths):
    checkpoint = tiny.checkpoint(family)
    ids = rows(family, lengths)
    ids = [ids[i] for i in np.random.default_rng(0).permutation(len(ids))]  # not in order of length
    padded = torch.nn.utils.rnn.pad_sequence(ids, True, checkpoint.residue_tokenizer.pad_token_id)
    mask = (torch.arange(padded.shape[1]) < torch.tensor([[len(each)] for each in ids])).long()
    results, gradients = [], []
    for as_a_row in (False, True):
        model = checkpoint.load_backbone(seed=0).eval()
        if as_a_row:
            use_packing(model)
            fuse(model)
            hidden = run_padded(model, padded, mask)
            assert not hidden[mask == 0].any()
        else:
            hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state
        results.append(hidden[mask.bool()])
        weights = torch.linspace(-1, 1, results[-1].numel()).reshape(results[-1].shape)
        (results[-1] * weights).sum().backward()
        results[-1] = results[-1].detach()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert torch.allclose(results[1], results[0], rtol=1e-5, atol=1e-5 * float(results[0].abs().max()))
    largest = max(float(each.abs().max()) for each in gradients[0].values())
    assert gradients[0].keys() == gradients[1].keys()
    for name, each in gradients[0].items():
        assert torch.allclose(gradients[1][name], each, rtol=1e-4, atol=1e-5 * largest), name


@pytest.mark.parametrize("cached", [40, 100, 2**20], ids=["one by one", "a few heads at a time", "all at once"])
def test_attention_spelled_out_has_the_gradients_of_its_formula(cached, monkeypatch):
    monkeypatch.setattr(attention, "CACHED", cached)
    monkeypatch.setattr(attention, "MULTIPLE", 4)
    torch.manual_seed(0)
    runs = [(4, 1), (3, 2), (1, 1)]
    states = [torch.randn(11, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *qkv: SpelledOut.apply(*qkv, runs), states)


@pytest.mark.parametrize("cached", [40, 100, 2**20], ids=["one by one", "a few heads at a time", "all at once"])
def test_attention_spelled_out_is_the_same_without_gradients(cached, monkeypatch):
    torch.manual_seed(0)
    states = [torch.randn(11, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    expected = SpelledOut.apply(*states, [(4, 1), (3, 2), (1, 1)]).detach()
    monkeypatch.setattr(attention, "CACHED", cached)
    found = SpelledOut.apply(*(each.detach() for each in states), [(4, 1), (3, 2), (1, 1)])
    assert torch.allclose(found, expected, rtol=1e-12)


def test_attention_in_bf16_learns_from_what_tells_tokens_apart():
    """Early in training keys, and values, are nearly alike: their differences must not drown in the rounding."""
    torch.manual_seed(0)
    query, weights = torch.randn(64, 2, 8), torch.randn(64, 2, 8)
    key, value = (5 + 0.05 * torch.randn(64, 2, 8) for _ in range(2))
    exact = [each.bfloat16().double().requires_grad_() for each in (query, key, value)]
    q, k, v = (each.transpose(0, 1) for each in exact)
    expected = (torch.softmax(q @ k.transpose(1, 2), -1) @ v).transpose(0, 1)
    (expected * weights.bfloat16().double()).sum().backward()
    rounded = [each.bfloat16().requires_grad_() for each in (query, key, value)]
    found = SpelledOut.apply(*rounded, [(64, 1)])
    (found * weights.bfloat16()).sum().backward()
    assert torch.allclose(found.double(), expected, rtol=0.005)
    for one, other in zip(rounded, exact, strict=True):
        assert float((one.grad.double() - other.grad).norm() / other.grad.norm()) < 0.1


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_attention_in_bf16_is_that_of_each_sequence_alone(lengths, seed):
    lengths = [*([1100] if seed % 4 == 0 else []), *lengths]  # too long to be spelled out
    torch.manual_seed(seed)
    query, key, value = (torch.randn(1, 2, sum(lengths), 8) for _ in range(3))
    module = torch.nn.Module()
    found, _ = packed_attention(
        module, *(each.bfloat16() for each in (query, key, value)), None, packing=Packing.of(lengths)
    )
    parts = zip(*(each.bfloat16().double().split(lengths, dim=2) for each in (query, key, value)), strict=True)
    alone = [torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v for q, k, v in parts]
    assert torch.allclose(found.double(), torch.cat(alone, dim=2).transpose(1, 2), atol=0.03)


def test_fused_layers_compute_the_same_without_packing():
    ids = torch.stack(rows("esm2", [20, 20]))
    model = load_language_model(tiny.checkpoint("esm2")).eval()
    expected = model(input_ids=ids).logits
    fuse(model)
    assert not any(type(module) is EsmIntermediate for module in model.modules())
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-6)


def test_what_packing_would_change_is_left_as_it_is():
    model = tiny.checkpoint("mistral-dna").load_backbone()
    assert can_pack(model)
    model.config.sliding_window = 8
    assert not can_pack(model)
    model = tiny.checkpoint("protbert").load_backbone()
    model.set_attn_implementation("eager")  # somebody wants to look at the attention
    assert not can_pack(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turning_leaves_what_it_turns(dtype):
    states, angle = torch.randn(7, 2, 3, 8, dtype=dtype), torch.rand(7, 1, 1, 4)
    was, (first, second) = states.clone(), states.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = _turned(states[:, :1], torch.polar(torch.ones_like(angle), angle))
    assert torch.equal(states, was)
    expected = torch.stack(
        [first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], -1
    ).flatten(-2)[:, :1]
    assert torch.allclose(turned.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.02)
