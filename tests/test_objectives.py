"""Masking, the next token, single tokens cut out; and the loss over packed and padded batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiny
from plft.attention import can_pack, use_packing
from plft.errors import PlftError
from plft.language_models import load_language_model
from plft.objectives import (
    NOTHING,
    LanguageModelTask,
    Symbols,
    check_symbols,
    cut_out,
    mask_tokens,
    next_token,
    pack,
    pad,
)
from plft.tokens import Encoded

MASKED = ["esm2", "esmc", "protbert", "nucleotide-transformer", "dnabert", "dna", "generic"]
LETTERS = {"dna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}


def encoded(family: str, n: int, seed: int = 0) -> Encoded:
    checkpoint = tiny.checkpoint(family)
    letters = list(LETTERS[checkpoint.family.alphabet])
    return checkpoint.residue_tokenizer.encode("".join(np.random.default_rng(seed).choice(letters, n)))


def tokens_of(family: str, n: int, seed: int = 0) -> np.ndarray:
    return encoded(family, n, seed).input_ids.astype(np.int64)


@pytest.mark.parametrize("rate", [0.15, 0.25])
@pytest.mark.parametrize("family", ["esm2", "dnabert"])
def test_the_masked_share_of_a_million_residues_is_the_rate_within_a_fifth_of_a_point(family, rate):
    symbols = Symbols.of(tiny.checkpoint(family))
    tokens = np.concatenate([tokens_of(family, 400, seed) for seed in range(20)] * 130)
    crops = np.array_split(tokens, 2600)
    chosen = eligible = 0
    for number, crop in enumerate(crops):
        corrupted = mask_tokens(crop, symbols, rate, np.random.default_rng(number))
        chosen += int((corrupted.targets != NOTHING).sum())
        eligible += int((~symbols.is_special[crop]).sum())
    assert eligible > 1_000_000
    assert abs(chosen / eligible - rate) < 0.002


@pytest.mark.parametrize("family", [*MASKED, "prott5", "prostt5", "ankh"])
def test_what_holds_no_residue_is_special_and_nothing_else(family):
    spans = encoded(family, 300).spans
    special = Symbols.of(tiny.checkpoint(family)).is_special[tokens_of(family, 300)]
    assert np.array_equal(special, spans[:, 0] == spans[:, 1])


@pytest.mark.parametrize("family", MASKED)
def test_special_tokens_are_never_masked_predicted_or_put_in(family):
    checkpoint = tiny.checkpoint(family)
    symbols, tokens = Symbols.of(checkpoint), tokens_of(family, 300)
    special = symbols.is_special[tokens]
    assert special.any()
    for seed in range(50):
        corrupted = mask_tokens(tokens, symbols, 0.5, np.random.default_rng(seed))
        assert (corrupted.targets[special] == NOTHING).all()
        assert np.array_equal(corrupted.ids[special], tokens[special])
        put_in = corrupted.ids[corrupted.ids != tokens]
        assert not symbols.is_special[put_in[put_in != symbols.mask]].any()


def test_of_the_chosen_tokens_80_percent_become_the_mask_10_another_letter_10_stay():
    symbols = Symbols.of(tiny.checkpoint("esm2"))
    tokens = np.tile(tokens_of("esm2", 400), 250)
    corrupted = mask_tokens(tokens, symbols, 0.3, np.random.default_rng(0))
    chosen = corrupted.targets != NOTHING
    masked = (corrupted.ids == symbols.mask)[chosen].mean()
    same = (corrupted.ids == tokens)[chosen].mean()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert same == pytest.approx(0.1 + 0.1 / 20, abs=0.01)  # one letter in twenty is swapped for itself
    assert np.array_equal(corrupted.ids[~chosen], tokens[~chosen])
    assert np.array_equal(corrupted.targets[chosen], tokens[chosen])


def test_overlapping_kmers_are_masked_in_runs_so_that_neighbours_give_nothing_away():
    symbols = Symbols.of(tiny.checkpoint("dnabert"))
    assert symbols.run == 3
    targets = mask_tokens(tokens_of("dnabert", 5000), symbols, 0.1, np.random.default_rng(0)).targets
    chosen = np.flatnonzero(targets[4:-4] != NOTHING)
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
    assert min(len(run) for run in runs[1:-1]) >= 3


def test_masked_kmers_hide_a_letter_also_at_the_ends_of_a_crop():
    symbols, k = Symbols.of(tiny.checkpoint("dnabert")), 3
    tokens = tokens_of("dnabert", 40)[1:-1]  # a crop from within a sequence
    at_start = []
    for seed in range(3000):
        chosen = mask_tokens(tokens, symbols, 0.1, np.random.default_rng(seed)).targets != NOTHING
        seen = np.zeros(len(tokens) + k - 1, dtype=bool)
        for at in np.flatnonzero(~chosen):
            seen[at : at + k] = True
        assert not any(seen[at : at + k].all() for at in np.flatnonzero(chosen))
        at_start.append(chosen[:2])
    assert abs(np.mean(at_start) - 0.1) < 0.02


def test_the_same_number_gives_the_same_masks():
    symbols, tokens = Symbols.of(tiny.checkpoint("esm2")), tokens_of("esm2", 100)
    first, again = (mask_tokens(tokens, symbols, 0.15, np.random.Generator(np.random.Philox(key=5))) for _ in range(2))
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.targets, again.targets)


def test_every_token_predicts_the_next_and_the_last_one_nothing():
    corrupted = next_token(np.array([4, 5, 6]), Symbols.of(tiny.checkpoint("protgpt2")), 0.15, np.random.default_rng(0))
    assert corrupted.ids.tolist() == [4, 5, 6]
    assert corrupted.targets.tolist() == [5, 6, NOTHING]


@pytest.mark.parametrize(("family", "sequence"), [("mistral-dna", "ACGTNNNNNNNNTTGACA"), ("protgpt2", "MKXTAYXIAK")])
def test_pieces_with_an_unknown_letter_are_read_and_not_predicted(family, sequence):
    checkpoint = tiny.checkpoint(family)
    encoded = checkpoint.residue_tokenizer.encode(sequence)
    tokens = encoded.input_ids.astype(np.int64)
    unknown = [any(letter in "XN" for letter in sequence[a:b]) for a, b in encoded.spans]
    assert any(unknown)
    corrupted = next_token(tokens, Symbols.of(checkpoint), 0.15, np.random.default_rng(0))
    assert np.array_equal(corrupted.ids, tokens)
    assert ((corrupted.targets[:-1] == NOTHING) == unknown[1:]).all()
    assert corrupted.eligible == len(tokens) - 1 - sum(unknown[1:])


def test_cut_out_tokens_become_sentinels_in_order_and_the_decoder_answers_each():
    symbols, tokens = Symbols.of(tiny.checkpoint("prott5")), tokens_of("prott5", 60)
    corrupted = cut_out(tokens, symbols, 0.2, np.random.default_rng(0))
    where = np.flatnonzero(corrupted.ids != tokens)
    asked, answers = corrupted.decoder
    assert corrupted.ids[where].tolist() == symbols.sentinels[: len(where)].tolist()
    assert asked[0] == tiny.checkpoint("prott5").config.decoder_start_token_id
    assert asked[1::2].tolist() == symbols.sentinels[: len(where)].tolist()
    assert answers[1::2].tolist() == tokens[where].tolist()
    assert asked[2::2].tolist() == tokens[where][:-1].tolist()
    assert set(answers[0::2]) == {NOTHING}


def test_no_more_tokens_are_cut_out_than_there_are_sentinels():
    symbols, tokens = Symbols.of(tiny.checkpoint("prott5")), tokens_of("prott5", 900)
    corrupted = cut_out(tokens, symbols, 0.5, np.random.default_rng(0))
    assert (corrupted.ids != tokens).sum() == len(symbols.sentinels) == 100


@pytest.mark.parametrize("family", [*MASKED, "mistral-dna", "protgpt2"])
def test_the_loss_of_a_packed_row_is_that_of_transformers_on_padded_rows(family):
    checkpoint = tiny.checkpoint(family)
    symbols = Symbols.of(checkpoint)
    corrupt = next_token if checkpoint.family.causal else mask_tokens
    random = np.random.default_rng(0)
    crops = [corrupt(tokens_of(family, n, n), symbols, 0.3, random) for n in (80, 33, 80, 50)]
    model = load_language_model(checkpoint).eval()
    reference = 0.0
    for crop in crops:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(crop.ids)[None]).logits[0]
        reference += float(
            F.cross_entropy(logits, torch.from_numpy(crop.targets), ignore_index=NOTHING, reduction="sum")
        )
    with torch.no_grad():
        padded = float(LanguageModelTask(model)(**pad(crops, checkpoint.residue_tokenizer.pad_token_id)))
        use_packing(model)
        packed = float(LanguageModelTask(model)(**pack(crops)))
    assert packed == pytest.approx(reference, rel=1e-5)
    if family != "esm2" or not model.config.token_dropout:
        assert padded == pytest.approx(reference, rel=1e-5)


def test_the_loss_of_span_corruption_is_that_of_transformers_alone():
    checkpoint = tiny.checkpoint("prott5")
    assert not can_pack(load_language_model(checkpoint))
    symbols, random = Symbols.of(checkpoint), np.random.default_rng(0)
    crops = [cut_out(tokens_of("prott5", n, n), symbols, 0.3, random) for n in (80, 33, 50)]
    model = load_language_model(checkpoint).eval()
    reference = 0.0
    for crop in crops:
        asked, answers = (torch.from_numpy(each)[None] for each in crop.decoder)
        logits = model(input_ids=torch.from_numpy(crop.ids)[None], decoder_input_ids=asked).logits
        reference += F.cross_entropy(logits[0], answers[0], ignore_index=NOTHING, reduction="sum").item()
    assert LanguageModelTask(model)(**pad(crops, 0)).item() == pytest.approx(reference, rel=1e-5)


def test_a_backbone_that_returns_a_tuple_has_the_same_loss():
    checkpoint = tiny.checkpoint("dnabert")
    model = load_language_model(checkpoint).eval()
    crop = mask_tokens(tokens_of("dnabert", 60), Symbols.of(checkpoint), 0.3, np.random.default_rng(0))
    losses = []
    for model.config.return_dict in (True, False):
        losses.append(float(LanguageModelTask(model)(**pad([crop], checkpoint.residue_tokenizer.pad_token_id))))
    assert losses[0] == losses[1] > 0


def test_the_head_sees_only_predicted_positions():
    checkpoint = tiny.checkpoint("esm2")
    model = load_language_model(checkpoint)
    use_packing(model)
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    crop = mask_tokens(tokens_of("esm2", 200), Symbols.of(checkpoint), 0.15, np.random.default_rng(0))
    LanguageModelTask(model)(**pack([crop]))
    assert seen == [int((crop.targets != NOTHING).sum())]


def test_the_layer_behind_a_decoder_sees_only_predicted_positions():
    model = load_language_model(tiny.checkpoint("prott5")).eval()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    symbols, random = Symbols.of(tiny.checkpoint("prott5")), np.random.default_rng(0)
    batch = pad([cut_out(tokens_of("prott5", n, n), symbols, 0.3, random) for n in (80, 33)], 0)
    LanguageModelTask(model)(**batch)
    assert seen == [int((batch["labels"] != NOTHING).sum())]
    labels = batch.pop("labels")
    assert model(**batch).logits.shape[:2] == labels.shape  # and the model is what it was


def test_a_crop_that_is_masked_from_end_to_end_has_a_loss():
    model = load_language_model(tiny.checkpoint("esm2"))
    use_packing(model)
    crop = mask_tokens(tokens_of("esm2", 30), Symbols.of(tiny.checkpoint("esm2")), 0.15, np.random.default_rng(0))
    hidden = replace(crop, ids=np.full_like(crop.ids, model.config.mask_token_id))
    assert torch.isfinite(LanguageModelTask(model)(**pack([crop, hidden])))


def test_a_batch_in_which_nothing_is_predicted_has_loss_zero():
    model = load_language_model(tiny.checkpoint("esm2"))
    use_packing(model)
    crop = mask_tokens(np.array([0, 2]), Symbols.of(tiny.checkpoint("esm2")), 0.15, np.random.default_rng(0))
    assert LanguageModelTask(model)(**pack([crop])).item() == 0


def test_a_tokenizer_without_a_mask_is_refused_for_masking():
    checkpoint = tiny.checkpoint("esm2")
    symbols = Symbols.of(checkpoint)
    with pytest.raises(PlftError, match="no mask token"):
        check_symbols(checkpoint, replace(symbols, mask=None))
