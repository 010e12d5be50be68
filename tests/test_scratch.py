"""Architectures and tokenizers built from nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, EsmTokenizer

import tiny
from plft.checkpoints import meta_backbone, resolve
from plft.errors import PlftError
from plft.families import FAMILIES, spell
from plft.language_models import load_language_model
from plft.scratch import ARCHITECTURES, architecture
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


@pytest.mark.parametrize(
    ("name", "size"),
    [("esm2-0.2m", 0.2e6), ("esm2-1m", 1e6), ("esm2-3m", 3e6), ("dna-1m", 1e6), ("dna-3m", 3e6), ("nt-1m", 1.05e6)],
)
def test_small_ones_are_as_large_as_their_names_say(name, size):
    assert n_parameters(name) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(
    ("name", "size"), [("t5-1m", 1e6), ("t5-8m", 8e6), ("protgpt2-1m", 1e6), ("protgpt2-10m", 1e7)]
)
def test_those_to_pretrain_are_as_large_as_their_names_say_with_decoder_and_head(name, size):
    with torch.device("meta"):
        model = load_language_model(resolve(f"scratch:{name}"))
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(("name", "family"), [("esm2-3x48x3", "esm2"), ("dna-3x48x3", "esm-dna")])
def test_a_name_can_spell_out_a_shape(name, family):
    checkpoint = resolve(f"scratch:{name}")
    shape = (checkpoint.config.num_hidden_layers, checkpoint.config.hidden_size, checkpoint.config.num_attention_heads)
    assert (shape, checkpoint.config.intermediate_size, checkpoint.family.name) == ((3, 48, 3), 192, family)
    assert sum(each.numel() for each in checkpoint.load_backbone().parameters()) == n_parameters(name)


def test_a_name_that_spells_out_a_named_shape_is_the_same_model():
    assert architecture("esm2-7x192x6").build()[1].to_dict() == architecture("esm2-3m").build()[1].to_dict()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("esm2-6x190x3", "esm2-6x192x3"),  # 190 is not shared by 3 heads
        ("dna-6x33x3", "dna-6x36x3"),  # heads of 11: rotary positions turn pairs
        ("esm2-0x64x4", "esm2-1x64x4"),
        ("esm2-2x64x0", "esm2-2x64x1"),
        ("esm2-2x0x4", "esm2-2x8x4"),
    ],
)
def test_a_shape_that_cannot_be_built_is_answered_with_one_that_can(name, nearest):
    with pytest.raises(PlftError, match=f"'{name}' cannot be built: .*Try '{nearest}'"):
        resolve(f"scratch:{name}")
    assert resolve(f"scratch:{nearest}").load_backbone() is not None


def test_there_is_a_tiny_model_for_every_tokenizer():
    assert {ARCHITECTURES[f"tiny-{each}"].family for each in tiny.TINY} == set(TOKENIZERS)


@pytest.mark.parametrize("family", tiny.TINY)
def test_a_tokenizer_reads_back_to_the_same_ids(family, tmp_path):
    checkpoint = tiny.checkpoint(family)
    checkpoint.tokenizer.save_pretrained(tmp_path)
    checkpoint.config.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    sequence = tiny.sequence(checkpoint, 70)
    encoded = ResidueTokenizer(again, checkpoint.family).encode(sequence)
    assert np.array_equal(encoded.input_ids, checkpoint.residue_tokenizer.encode(sequence).input_ids)
    assert type(again) is type(checkpoint.tokenizer)


@pytest.mark.parametrize(
    ("family", "options", "sequence"),
    [
        ("esm2", {}, "MKTAYIAKQRXBUZO"),
        ("esm-dna", {}, "ACGTNNTGCA"),
        ("nucleotide-transformer", {"kmer": 6}, "ACGTACGTTN"),
        ("dnabert", {"kmer": 3}, "ACGTACGTTG"),
        ("mistral-dna", {"sequences": ["TATAATGCGC" * 30] * 9, "size": 64}, "TATAATGCNTATA"),
        ("protgpt2", {"sequences": ["MKTAYIAKQR" * 30] * 9, "size": 400}, "MKTAYIAKQRWWW"),
    ],
)
def test_a_tokenizer_alone_in_a_folder_reads_back_to_the_same_ids(family, options, sequence, tmp_path):
    tokenizer = scratch_tokenizer(family, **options)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = spell(replace(FAMILIES[family], kmer=options.get("kmer")), sequence).text
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.special_tokens_map == tokenizer.special_tokens_map


def test_the_tokenizer_of_esm2_gives_what_the_published_class_gives(tmp_path):
    ours, family = scratch_tokenizer("esm2"), FAMILIES["esm2"]
    assert ours.is_fast
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(ours.get_vocab(), key=ours.get_vocab().__getitem__)))
    published = EsmTokenizer(str(tmp_path / "vocab.txt"))
    assert published.get_vocab() == ours.get_vocab()
    assert published.special_tokens_map == ours.special_tokens_map
    for text in ("MKTAYIAKQRXBUZO.-", "MK<mask><mask>A", "M K T A", ""):
        assert dict(published(text)) == dict(ours(text))
    assert ours.tokenize("MJJA") == ["M", "<unk>", "<unk>", "A"]  # the published class makes one of them
    residues = [ResidueTokenizer(each, family).encode("MKTAYIAKQRXBUZO") for each in (published, ours)]
    assert np.array_equal(residues[0].input_ids, residues[1].input_ids)
    assert np.array_equal(residues[0].spans, residues[1].spans)


def test_letters_of_dna_are_numbered_as_documented():
    symbols = ["<cls>", "<pad>", "<eos>", "<unk>", "A", "C", "G", "T", "N", "<mask>"]
    tokenizer = scratch_tokenizer("esm-dna")
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == symbols
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 9)


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
