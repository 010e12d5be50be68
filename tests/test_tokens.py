"""Residues and tokens brought into line, for every family."""

import re
import time

import numpy as np
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5Tokenizer

import tiny
from plft.errors import PlftError
from plft.families import FAMILIES, recognise
from plft.tokens import ResidueTokenizer, residue_spans
from plft.vocabularies import scratch_tokenizer

LETTERWISE = ("esm2", "esm1b", "esmc", "protbert", "prott5", "prostt5", "ankh", "dna", "generic")


@pytest.fixture(scope="module")
def tokenizers():
    return {family: tiny.checkpoint(family).residue_tokenizer for family in tiny.TINY}


def letters_of(tokenizer, token_id):
    return tokenizer.convert_ids_to_tokens(int(token_id)).replace("▁", "").removeprefix("##")


@pytest.mark.parametrize("family", tiny.TINY)
def test_every_token_spells_the_residues_of_its_span(tokenizers, family):
    tokenizer, checkpoint = tokenizers[family], tiny.checkpoint(family)
    sequence = tiny.sequence(checkpoint, 130)
    encoded = tokenizer.encode(sequence)
    for token_id, (start, stop) in zip(encoded.input_ids, encoded.spans, strict=True):
        if stop > start:
            assert letters_of(tokenizer.tokenizer, token_id) == sequence[start:stop]


@pytest.mark.parametrize("family", tiny.TINY)
def test_every_residue_is_in_a_token_and_special_tokens_hold_none(tokenizers, family):
    sequence = tiny.sequence(tiny.checkpoint(family), 75)
    encoded = tokenizers[family].encode(sequence)
    covered = {residue for start, stop in encoded.spans for residue in range(start, stop)}
    assert covered == set(range(75))
    special = set(tokenizers[family].tokenizer.all_special_ids)
    is_special = np.isin(encoded.input_ids, list(special))
    assert np.all(encoded.spans[is_special] == 0)


@pytest.mark.parametrize("family", tiny.TINY)
def test_look_up_and_tokenizer_agree(tokenizers, family):
    checkpoint = tiny.checkpoint(family)
    sequence = tiny.sequence(checkpoint, 61)
    ids, spans = residue_spans(checkpoint.tokenizer, checkpoint.family, sequence)
    encoded = tokenizers[family].encode(sequence)
    assert encoded.input_ids.tolist() == ids
    assert np.array_equal(encoded.spans, spans)
    assert tokenizers[family].is_letterwise == (family in LETTERWISE)


@pytest.mark.parametrize(
    ("family", "sequence", "ids", "spans"),
    [
        # the published numbering: ESM-2 <cls> 0, <eos> 2, M 20, K 15, T 11
        ("esm2", "MKT", [0, 20, 15, 11, 2], [(0, 0), (0, 1), (1, 2), (2, 3), (0, 0)]),
        ("esmc", "MKT", [0, 20, 15, 11, 2], [(0, 0), (0, 1), (1, 2), (2, 3), (0, 0)]),
        ("protbert", "MKU", [2, 21, 12, 25, 3], [(0, 0), (0, 1), (1, 2), (2, 3), (0, 0)]),  # U is read as X
        ("prott5", "MKT", [19, 14, 11, 1], [(0, 1), (1, 2), (2, 3), (0, 0)]),
        ("prostt5", "MKT", [149, 19, 14, 11, 1], [(0, 0), (0, 1), (1, 2), (2, 3), (0, 0)]),
        ("ankh", "MKT", [19, 14, 11, 1], [(0, 1), (1, 2), (2, 3), (0, 0)]),
        ("dna", "ACGTNR", [0, 4, 5, 6, 7, 8, 3, 2],
         [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (0, 0)]),
        ("dnabert", "AATN", [2, 6, 1, 3], [(0, 0), (0, 3), (1, 4), (0, 0)]),
        ("nucleotide-transformer", "AAAAAAAATN", [3, 4, 4100, 4100, 4101, 4104],
         [(0, 0), (0, 6), (6, 7), (7, 8), (8, 9), (9, 10)]),
    ],
)  # fmt: skip
def test_known_ids(tokenizers, family, sequence, ids, spans):
    encoded = tokenizers[family].encode(sequence)
    assert encoded.input_ids.tolist() == ids
    assert [tuple(span) for span in encoded.spans] == spans


@pytest.mark.parametrize("family", ["esm2", "prott5", "mistral-dna", "nucleotide-transformer", "dnabert"])
def test_many_at_once_is_the_same_as_one_by_one(tokenizers, family):
    checkpoint = tiny.checkpoint(family)
    sequences = [tiny.sequence(checkpoint, n) for n in (9, 31, 12, 1)]
    for sequence, encoded in zip(sequences, tokenizers[family].encode_all(sequences), strict=True):
        assert np.array_equal(encoded.input_ids, tokenizers[family].encode(sequence).input_ids)


def test_neighbouring_unknown_letters_stay_one_token_each(tokenizers):
    # ESM's own tokenizer runs JJ together into a single <unk>, which would shift the labels of all later residues
    encoded = tokenizers["esm2"].encode("MJJK")
    assert encoded.input_ids.tolist() == [0, 20, 3, 3, 15, 2]


def test_letters_that_become_unknown_are_named_and_counted(tokenizers):
    assert tokenizers["esm2"].unknown_letters == "J"
    assert "A" not in tokenizers["dnabert"].unknown_letters
    assert "N" in tokenizers["dnabert"].unknown_letters
    assert tokenizers["esm2"].unknown_residues(tokenizers["esm2"].encode("MJJK")) == 2
    assert tokenizers["dnabert"].unknown_residues(tokenizers["dnabert"].encode("AAAANAAAA")) == 5  # words 2 to 6


@pytest.mark.parametrize("family", ["dnabert", "nucleotide-transformer", "protgpt2", "protbert", "generic"])
def test_a_hard_limit_is_kept_and_the_residues_beyond_it_are_counted(tokenizers, family):
    tokenizer = tokenizers[family]
    sequence = tiny.sequence(tiny.checkpoint(family), 9000)
    encoded = tokenizer.encode(sequence)
    assert len(encoded) == tokenizer.family.max_tokens
    assert 0 < encoded.n_cut < 9000
    assert encoded.spans.max() == 9000  # the last token answers for what was cut
    whole = tokenizer.encode(sequence[: 9000 - encoded.n_cut])
    assert np.array_equal(whole.input_ids, encoded.input_ids)


@pytest.mark.parametrize("family", [family for family in tiny.TINY if family not in ("protgpt2", "mistral-dna")])
def test_a_sequence_of_max_residues_is_not_cut_and_fills_the_limit(tokenizers, family):
    tokenizer = tokenizers[family]
    n_residues = tokenizer.max_residues or tokenizer.residues_within(600)
    sequence = ("ACGT" if tokenizer.family.alphabet == "dna" else "MKTA") * (n_residues // 4 + 1)
    encoded = tokenizer.encode(sequence[:n_residues])
    assert (len(encoded), encoded.n_cut) == (tokenizer.family.max_tokens or 600, 0)


def test_a_function_of_the_users_own_can_spell(tokenizers):
    protbert = tiny.checkpoint("protbert")
    spelled = ResidueTokenizer(protbert.tokenizer, protbert.family, lambda s: " ".join(re.sub("[UZOB]", "X", s)))
    assert np.array_equal(spelled.encode("MKUT").input_ids, tokenizers["protbert"].encode("MKUT").input_ids)
    prostt5 = tiny.checkpoint("prostt5")
    tagged = ResidueTokenizer(prostt5.tokenizer, prostt5.family, lambda s: "<AA2fold>  " + " ".join(s))
    assert tagged.encode("MK").spans.tolist() == [[0, 0], [0, 1], [1, 2], [0, 0]]


def test_a_function_that_loses_residues_is_refused():
    protbert = tiny.checkpoint("protbert")
    spelled = ResidueTokenizer(protbert.tokenizer, protbert.family, lambda s: " ".join(s[1:]))
    with pytest.raises(PlftError, match="3 letters out of 4 residues"):
        spelled.encode("MKTA")


def test_a_tokenizer_that_drops_a_letter_is_an_error_and_not_a_shift():
    tokenizer = scratch_tokenizer("mistral-dna", size=64)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("N", "removed")
    family = FAMILIES["mistral-dna"]
    with pytest.raises(PlftError, match="no token for 'N' at position 3"):
        ResidueTokenizer(tokenizer, family).encode("ACNGT")


def test_a_sentencepiece_file_as_published_prott5_ships_it_is_aligned(tmp_path):
    lines = [" ".join(tiny.sequence(tiny.checkpoint("prott5"), 60)) + " D E W C P L N G" for _ in range(50)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "spiece"), model_type="word", vocab_size=24,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=9,
    )  # fmt: skip
    T5Config(vocab_size=128).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    family = recognise(T5Config(), tokenizer.get_vocab())
    encoded = ResidueTokenizer(tokenizer, family).encode("MKTAY")
    assert family.name == "prott5"
    assert [letters_of(tokenizer, each) for each in encoded.input_ids] == [*"MKTAY", "</s>"]
    assert encoded.spans.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [0, 0]]


def test_ankh_reads_single_letters_even_where_its_tokenizer_puts_a_space_mark_before_each():
    pieces = ["<pad>", "</s>", "<unk>", *"ALGVSREDTIPKFQNYMHWCXBOUZ"]
    tokenizer = T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0)
    encoded = ResidueTokenizer(tokenizer, FAMILIES["ankh"]).encode("MKT")
    assert encoded.input_ids.tolist() == [19, 14, 11, 1]


def test_a_fast_tokenizer_of_kmers_is_aligned_through_offsets():
    slow = scratch_tokenizer("nucleotide-transformer")
    fast = Tokenizer(models.WordLevel(slow.get_vocab(), unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex("[ACGT]{6}|."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>", pad_token="<pad>")
    encoded = ResidueTokenizer(tokenizer, FAMILIES["nucleotide-transformer"]).encode("AAAAAANACGTAC")
    assert encoded.spans.tolist() == [[0, 6], [6, 7], [7, 13]]


def test_an_empty_sequence_has_special_tokens_only(tokenizers):
    assert tokenizers["esm2"].encode("").input_ids.tolist() == [0, 2]


def test_one_million_residues_take_less_than_a_second(tokenizers):
    sequences = ["MKTAYIAKQRQISFVKSHFSRQLEERLG" * 12] * 3000
    start = time.perf_counter()
    tokenizers["protbert"].encode_all(sequences)
    assert time.perf_counter() - start < 1.0


def test_a_causal_model_reads_where_a_sequence_ends(tokenizers):
    for family in ("protgpt2", "mistral-dna"):
        before, after = tokenizers[family].around
        tokenizer = tokenizers[family].tokenizer
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
        assert before, family
        assert after[-1] in ends, family
    start, line, end = *tokenizers["protgpt2"].around[0], tokenizers["protgpt2"].around[1][-1]
    assert tokenizers["protgpt2"].around == ([start, line], [line, end])
    assert start == end
