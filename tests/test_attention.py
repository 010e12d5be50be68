"""Packed rows against one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.esm.modeling_esm import EsmIntermediate

import tiny
from plft.attention import PACKED, Packing, can_pack, fuse, run_packed, use_packing
from plft.language_models import load_language_model

PACKABLE = [name for name in tiny.TINY if can_pack(load_language_model(tiny.checkpoint(name)))]
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


@pytest.mark.parametrize("family", PACKABLE)
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
        PACKABLE
    )
    assert not can_pack(load_language_model(tiny.checkpoint("prott5")))


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


def test_a_model_switched_to_packing_still_takes_a_batch_of_equal_lengths():
    ids = torch.stack(rows("esm2", [20, 20, 20]))
    model = load_language_model(tiny.checkpoint("esm2")).eval()
    expected = model.base_model(input_ids=ids).last_hidden_state
    use_packing(model)
    assert model.config._attn_implementation == PACKED
    assert torch.allclose(model.base_model(input_ids=ids).last_hidden_state, expected, atol=1e-5)


def test_fused_layers_compute_the_same():
    ids = torch.stack(rows("esm2", [20, 20]))
    model = load_language_model(tiny.checkpoint("esm2")).eval()
    expected = model(input_ids=ids).logits
    fuse(model)
    assert not any(type(module) is EsmIntermediate for module in model.modules())
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-6)
