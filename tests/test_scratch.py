"""Architectures and tokenizers built from nothing."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import tiny
from plft.checkpoints import meta_backbone, resolve
from plft.errors import PlftError
from plft.tokens import ResidueTokenizer
from plft.vocabularies import TOKENIZERS, scratch_tokenizer


def n_parameters(name):
    return sum(each.numel() for each in meta_backbone(name).parameters())


def test_prott5_xl_has_the_published_number_of_parameters():
    assert n_parameters("prott5-xl") == 1_208_141_824


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # the published counts include pooler, language-model head and unused positions: 6 % of the smallest
        ("esm2-8m", 7.8e6), ("esm2-35m", 33.9e6), ("esm2-150m", 148e6), ("esm2-650m", 650e6), ("esm2-3b", 2.8e9),
        ("esm2-15b", 15e9), ("esm1b", 650e6), ("esmc-300m", 333e6), ("esmc-600m", 575e6), ("protbert", 420e6),
        ("ankh-base", 450e6), ("ankh-large", 1.15e9), ("mistral-dna-17m", 16.8e6), ("nt-50m", 50e6),
        ("dnabert-6", 89e6),
    ],
)  # fmt: skip
def test_sizes_are_near_the_published_ones(name, published):
    assert n_parameters(name) == pytest.approx(published, rel=0.07)


@pytest.mark.parametrize(("name", "size"), [("esm2-0.2m", 0.2e6), ("esm2-1m", 1e6), ("esm2-3m", 3e6)])
def test_small_ones_are_as_large_as_their_names_say(name, size):
    assert n_parameters(name) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_tokenizer_reads_back_to_the_same_ids(family, tmp_path):
    checkpoint = tiny.checkpoint(family)
    checkpoint.tokenizer.save_pretrained(tmp_path)
    checkpoint.config.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    sequence = tiny.sequence(checkpoint, 70)
    encoded = ResidueTokenizer(again, checkpoint.family).encode(sequence)
    assert np.array_equal(encoded.input_ids, checkpoint.residue_tokenizer.encode(sequence).input_ids)
    assert type(again) is type(checkpoint.tokenizer)


def test_the_vocabularies_have_the_published_sizes():
    sizes = {
        family: len(scratch_tokenizer(family)) for family in ("esm2", "esmc", "protbert", "prott5", "prostt5", "ankh")
    }
    assert sizes == {"esm2": 33, "esmc": 33, "protbert": 30, "prott5": 128, "prostt5": 150, "ankh": 144}
    assert len(scratch_tokenizer("nucleotide-transformer")) == 4105
    assert [len(scratch_tokenizer("dnabert", kmer=k)) for k in (3, 6)] == [69, 4101]


def test_pieces_are_learned_from_the_sequences_given():
    tokenizer = scratch_tokenizer("mistral-dna", ["TATAATGC" * 10] * 20, size=32)
    assert "TATAATGC" in tokenizer.get_vocab()
    assert len(tokenizer) <= 32
    assert tokenizer.pad_token_id == 3


def test_learned_pieces_are_the_same_every_time():
    first, second = (
        scratch_tokenizer("mistral-dna", ["ACGTTGCAAC" * 30, "GGGTTTACAC" * 30], size=64) for _ in range(2)
    )
    assert first.get_vocab() == second.get_vocab()


def test_no_letter_of_a_protein_is_lost_by_learned_pieces():
    tokenizer = scratch_tokenizer("protgpt2", ["MMMM"], size=400)
    assert tokenizer.decode(tokenizer("MWJUZ*")["input_ids"]) == "MWJUZ*"


def test_an_unknown_scratch_name_is_answered_with_the_nearest():
    with pytest.raises(PlftError, match=r"Unknown scratch model 'esm2-9m'\. .*Did you mean 'esm2-8m'\?"):
        resolve("scratch:esm2-9m")


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny.checkpoint("esm2").load_backbone()
    assert torch.equal(torch.rand(3), expected)


def test_the_seed_decides_the_weights():
    def first_weight(seed):
        return next(tiny.checkpoint("esm2", seed=seed).load_backbone().parameters())

    assert torch.equal(first_weight(1), first_weight(1))
    assert not torch.equal(first_weight(1), first_weight(2))
