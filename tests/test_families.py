"""Recognition of families and the spelling of sequences for them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from plft.families import AMINO_ACIDS, FAMILIES, kind_of_vocabulary, kmer_length, recognise, spell
from plft.scratch import ARCHITECTURES
from plft.vocabularies import kmers

SMALL = [name for name in ARCHITECTURES if name != "protgpt2"]  # its vocabulary takes seconds to train


def config(model_type, **facts):
    return SimpleNamespace(model_type=model_type, **facts)


def vocabulary(*tokens):
    return {token: i for i, token in enumerate(tokens)}


def residues(text):
    return "".join(str(each) if each >= 0 else "." for each in text.residue_of_char)


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_is_recognised_as_its_own_family(name):
    tokenizer, settings = ARCHITECTURES[name].build()
    assert recognise(settings, tokenizer.get_vocab()).name == ARCHITECTURES[name].family


def test_esm_with_a_6_mer_vocabulary_is_the_nucleotide_transformer():
    vocab = vocabulary("<cls>", "<pad>", *kmers(6), *"ATCGN")
    family = recognise(config("esm", max_position_embeddings=1002, pad_token_id=1), vocab)
    assert (family.name, family.kmer, family.max_tokens, family.trained_residues) == (
        "nucleotide-transformer",
        6,
        1000,
        999 * 6,
    )


@pytest.mark.parametrize(("positions", "limit"), [("rotary", None), ("absolute", 1024)])
def test_esm_with_letters_of_dna_is_limited_only_by_absolute_positions(positions, limit):
    vocab = vocabulary("<cls>", "<pad>", "<eos>", "<unk>", *"ACGTN", "<mask>")
    facts = {"position_embedding_type": positions, "max_position_embeddings": 1026, "pad_token_id": 1}
    family = recognise(config("esm", **facts), vocab)
    assert (family.name, family.max_tokens, family.trained_residues) == ("esm-dna", limit, 1022)


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        ("ACGT", "nucleotides"),
        ("ACGTURYSWKMBDHVN", "nucleotides"),  # every IUPAC letter
        (AMINO_ACIDS, "residues"),
        ([*"ACGT", "AC", "ACG", "TATA", "TATAA", "CG", "CGCG", "GATTACA"], "dna pieces"),
        ("ACG", "other"),
        ("ACGTE", "other"),
    ],
)
def test_letters_of_dna_are_told_from_amino_acids_and_from_pieces(tokens, kind):
    assert kind_of_vocabulary(["[CLS]", "[SEP]", *tokens]) == kind


def test_an_unknown_model_of_dna_letters_reads_dna():
    family = recognise(config("hyenadna"), vocabulary("[CLS]", *"ACGTN"))
    assert (family.is_known, family.alphabet, family.spelling) == (False, "dna", "plain")


@pytest.mark.parametrize(("k", "expected"), [(3, 512), (6, 515)])
def test_k_of_dnabert_is_read_off_the_vocabulary(k, expected):
    family = recognise(config("bert", max_position_embeddings=512), vocabulary("[CLS]", "[SEP]", *kmers(k)))
    # 510 words of k letters that overlap by k - 1
    assert (family.name, family.kmer, family.trained_residues) == ("dnabert", k, expected)


def test_esm_with_absolute_positions_stops_at_1022_residues():
    vocab = vocabulary("<cls>", "<eos>", *AMINO_ACIDS)
    absolute = config("esm", position_embedding_type="absolute", max_position_embeddings=1026, pad_token_id=1)
    rotary = config("esm", position_embedding_type="rotary", max_position_embeddings=1026, pad_token_id=1)
    assert (recognise(absolute, vocab).name, recognise(absolute, vocab).max_tokens) == ("esm1b", 1024)
    assert (recognise(rotary, vocab).name, recognise(rotary, vocab).max_tokens) == ("esm2", None)


@pytest.mark.parametrize(("size", "expected"), [(4096, "dnabert2"), (32000, "gena-lm")])
def test_bert_with_pieces_of_dna_is_told_apart_by_the_size_of_its_vocabulary(size, expected):
    assert recognise(config("bert"), vocabulary("[CLS]", *kmers(8)[:size])).name == expected


def test_an_english_model_gets_safe_defaults_that_say_so():
    words = [f"word{i}" for i in range(500)]
    family = recognise(config("bert", max_position_embeddings=512), vocabulary("[CLS]", *words, *AMINO_ACIDS))
    assert not family.is_known
    assert "safe defaults" in family.note
    assert (family.max_tokens, family.causal) == (512, False)


def test_an_unknown_decoder_is_causal():
    assert recognise(config("llama"), vocabulary(*AMINO_ACIDS, "X")).causal


def test_a_few_kmers_among_longer_pieces_are_not_a_kmer_vocabulary():
    assert kmer_length([*kmers(3), "ACGTACGT"]) is None
    assert kmer_length([*kmers(4), *"ACGTN", "[CLS]"]) == 4
    assert kmer_length(AMINO_ACIDS) is None


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("esm2", "MUT", "012"),
        ("protbert", "M X T", "0.1.2"),
        ("prostt5", "<AA2fold> M X T", "..........0.1.2"),
        ("ankh", "MUT", "012"),
    ],
)
def test_a_protein_is_spelled_the_way_its_family_reads_it(family, text, expected):
    spelled = spell(FAMILIES[family], "MUT")
    assert (spelled.text, residues(spelled)) == (text, expected)


def test_overlapping_words_point_back_at_their_letters():
    spelled = spell(FAMILIES["dnabert"], "ACGTACGT")
    assert spelled.text == "ACGTAC CGTACG GTACGT"
    assert residues(spelled) == "012345.123456.234567"


def test_a_sequence_shorter_than_a_word_is_one_short_word():
    assert spell(FAMILIES["dnabert"], "ACG").text == "ACG"
    assert residues(spell(FAMILIES["dnabert"], "ACG")) == "012"


def test_protgpt2_reads_lines_of_sixty():
    spelled = spell(FAMILIES["protgpt2"], "M" * 61)
    assert spelled.text == "<|endoftext|>\n" + "M" * 60 + "\nM"
    assert spelled.residue_of_char.tolist() == [-1] * 14 + list(range(60)) + [-1, 60]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [0, 1, 2, 59, 60, 61, 120, 121])
def test_every_residue_appears_in_order_in_every_spelling(family, length):
    spelled = spell(FAMILIES[family], "A" * length)
    assert len(spelled.residue_of_char) == len(spelled.text)
    assert sorted(set(spelled.residue_of_char.tolist()) - {-1}) == list(range(length))


def test_t5_never_runs_in_fp16():
    assert [name for name, family in FAMILIES.items() if "t5" in family.model_types and family.fp16] == []


def test_the_family_table_does_not_import_torch():
    check = "import sys, plft.families; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
