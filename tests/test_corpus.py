"""Token stores, held-out parts and the crops of an epoch."""

from __future__ import annotations

import gzip
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from plft import corpus as corpora
from plft.corpus import BLOCK, Crops, Part, hold_out, shuffled, tokenise, without_copies, write_fasta
from plft.errors import PlftError

PROTEIN = tiny.checkpoint("esm2").residue_tokenizer
DNA = tiny.checkpoint("dna").residue_tokenizer


def store(folder: Path, sequences: list[str], tokenizer=PROTEIN, name: str = "a.fasta", **options):
    file = folder / name
    file.write_text("".join(f">s{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return tokenise([file], tokenizer, folder / "cache", **options)


def spelled(tokens: np.ndarray, tokenizer=PROTEIN) -> str:
    return "".join(tokenizer.tokenizer.convert_ids_to_tokens(tokens.tolist()))


def random_proteins(n: int, low: int = 20, high: int = 90, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), random.integers(low, high))) for _ in range(n)]


def test_a_store_holds_every_sequence_once_and_counts_the_copies(tmp_path):
    corpus = store(tmp_path, ["MKTAY", "GGGG", "MKTAY", "mktay"])
    assert [spelled(corpus.read(i, 0, int(corpus.lengths[i]))) for i in range(len(corpus))] == ["MKTAY", "GGGG"]
    assert (corpus.facts.sequences, corpus.facts.duplicates, corpus.facts.residues) == (4, 2, 19)


def test_the_same_content_is_tokenised_only_once_and_other_content_anew(tmp_path, monkeypatch):
    first = store(tmp_path, ["MKTAY"])
    monkeypatch.setattr(corpora._Builder, "build", None)
    assert store(tmp_path, ["MKTAY"], name="b.fasta").folder == first.folder
    with pytest.raises(TypeError):
        store(tmp_path, ["MKTAW"])


def test_several_files_compressed_or_not_make_one_corpus(tmp_path):
    (tmp_path / "a.fasta").write_text(">a\nMKTAY\n")
    with gzip.open(tmp_path / "b.fasta.gz", "wt") as file:
        file.write(">b\nGGGGG\n>c\nMKTAY\n")
    corpus = tokenise([tmp_path / "a.fasta", tmp_path / "b.fasta.gz"], PROTEIN, tmp_path / "cache")
    assert (len(corpus), corpus.facts.duplicates, set(corpus.facts.files)) == (2, 1, {"a.fasta", "b.fasta.gz"})


def test_files_of_the_same_name_are_not_taken_for_one_another(tmp_path):
    for folder, sequence in (("a", "MKTAY"), ("b", "GGGGG")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.fasta").write_text(f">x\n{sequence}\n")
    files = [tmp_path / "a" / "s.fasta", tmp_path / "b" / "s.fasta"]
    assert len(tokenise(files[1:], PROTEIN, tmp_path / "cache")) == 1
    both = tokenise(files, PROTEIN, tmp_path / "cache")
    assert len(both) == 2
    assert set(both.facts.files) == {"s.fasta", "s.fasta (2)"}


def test_files_of_the_same_name_may_have_a_number_in_it(tmp_path):
    for folder, sequence in (("a", "MKTAY"), ("b", "GGGGG")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s (1).fasta").write_text(f">x\n{sequence}\n")
    both = tokenise([tmp_path / folder / "s (1).fasta" for folder in "ab"], PROTEIN, tmp_path / "cache")
    assert set(both.facts.files) == {"s (1).fasta", "s (1).fasta (2)"}
    assert len(tokenise([tmp_path / "b" / "s (1).fasta"], PROTEIN, tmp_path / "cache")) == 1


def test_what_files_mark_as_valid_or_test_is_not_there_to_learn(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("sequence,split\nMKTAY,train\nGGGGG,test\nAAAAA,valid\nCCCCC,\n")
    everything = tokenise([file], PROTEIN, tmp_path / "cache")
    assert (len(everything), everything.facts.other_parts) == (4, 0)
    to_learn = tokenise([file], PROTEIN, tmp_path / "cache", to_learn=True)
    assert [spelled(to_learn.read(at, 0, 5)) for at in range(len(to_learn))] == ["MKTAY", "CCCCC"]
    assert (to_learn.facts.sequences, to_learn.facts.residues, to_learn.facts.other_parts) == (2, 10, 2)
    file.write_text("sequence,split\nGGGGG,test\n")
    with pytest.raises(PlftError, match="every sequence is marked as valid or test"):
        tokenise([file], PROTEIN, tmp_path / "cache", to_learn=True)


@pytest.mark.parametrize(("family", "expected"), [("esm2", "XBUO"), ("protbert", "XXXX"), ("dna", "NNNN")])
def test_a_token_of_several_letters_is_spelled_as_the_unknown_one(family, expected, tmp_path):
    tokenizer = tiny.checkpoint(family).residue_tokenizer
    (tokens,) = tokenizer.bodies(["XBUO" if family != "dna" else "NNNN"])
    assert tokenizer.letters[tokens].tobytes().decode() == expected


def test_letters_outside_the_alphabet_are_replaced_and_counted(tmp_path):
    corpus = store(tmp_path, ["MKJAY*"])
    assert spelled(corpus.read(0, 0, 5)) == "MKXAY"  # the stop at the end is none of the sequence
    assert corpus.facts.unknown == 1


def test_a_corpus_of_the_wrong_alphabet_is_refused(tmp_path):
    with pytest.raises(PlftError, match="look like dna"):
        store(tmp_path, ["ACGT" * 50])


def test_an_empty_file_is_refused_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(PlftError):
        store(tmp_path, [])
    assert [each.suffix for each in (tmp_path / "cache" / "corpora").iterdir()] == [".lock"]


def test_a_store_that_was_cut_short_is_made_anew(tmp_path):
    for file in ("tokens.bin", "entries.bin", "facts.json"):
        whole = store(tmp_path, ["MKTAY", "GGGG"])
        (whole.folder / file).write_bytes((whole.folder / file).read_bytes()[:-3])
        assert spelled(store(tmp_path, ["MKTAY", "GGGG"]).read(1, 0, 4)) == "GGGG"
        (whole.folder / file).unlink()
        assert spelled(store(tmp_path, ["MKTAY", "GGGG"]).read(1, 0, 4)) == "GGGG"


def test_what_a_killed_builder_left_is_removed(tmp_path):
    folder = store(tmp_path, ["MKTAY"]).folder
    left = folder.rename(folder.with_name(f".{folder.name}"))
    (left / "all.bin").write_bytes(b"half")
    assert store(tmp_path, ["MKTAY"]).folder == folder
    assert not left.exists()
    assert not (folder / "all.bin").exists()


def test_of_two_that_want_a_store_one_makes_it_and_the_other_waits(tmp_path, monkeypatch):
    made = []

    class Slow(corpora._Builder):
        def build(self, *files):
            made.append(files)
            time.sleep(0.3)
            super().build(*files)

    monkeypatch.setattr(corpora, "_Builder", Slow)
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda name: store(tmp_path, ["MKTAY"], name=name), ("a.fasta", "b.fasta")))
    assert len(made) == 1
    assert [each.facts.files.keys() for each in stores] == [{"a.fasta"}, {"b.fasta"}]


def test_blocks_are_as_long_as_asked(tmp_path):
    corpus = store(tmp_path, random_proteins(1, 250, 251), block=100)
    assert corpus.lengths.tolist() == [100, 100, 50]


def test_both_strands_are_stored_and_stay_in_one_part(tmp_path):
    random = np.random.default_rng(0)
    sequences = ["".join(random.choice(list("ACGT"), 60)) for _ in range(40)]
    corpus = store(tmp_path, sequences, DNA, both_strands=True)
    assert len(corpus) == 80
    assert spelled(corpus.read(1, 0, 60), DNA) == sequences[0].translate(str.maketrans("ACGT", "TGCA"))[::-1]
    held_out = hold_out(corpus, 0.1)
    assert len(held_out) == 8
    assert (Part(corpus).n_stretches, Part(corpus, held_out).n_stretches) == (40, 4)
    groups = corpus.hashes[:] >> np.uint64(1)
    assert not set(np.delete(groups, held_out)) & set(groups[held_out])


def test_sequences_to_compare_are_written_on_one_strand(tmp_path):
    corpus = store(tmp_path, ["AAACCC", "GGGTTA"], DNA, both_strands=True)
    write_fasta(Part(corpus), DNA.letters, tmp_path / "out.fasta")
    assert (tmp_path / "out.fasta").read_text() == ">0\nAAACCC\n>2\nGGGTTA\n"


def test_the_order_of_files_makes_another_store(tmp_path):
    files = [tmp_path / "a.fasta", tmp_path / "b.fasta"]
    for file, letters in zip(files, ("MKTAY", "GGGG"), strict=True):
        file.write_text(f">s\n{letters}\n")
    for order in (files, files[::-1]):
        corpus = tokenise(order, PROTEIN, tmp_path / "cache")
        assert spelled(corpus.read(0, 0, int(corpus.lengths[0]))) == {"a": "MKTAY", "b": "GGGG"}[order[0].stem]


def test_a_long_sequence_becomes_blocks_that_know_where_it_starts_and_ends(tmp_path):
    long = random_proteins(1, BLOCK * 2 + 100, BLOCK * 2 + 101)[0]
    corpus = store(tmp_path, [long])
    assert corpus.lengths.tolist() == [BLOCK, BLOCK, 100]
    assert corpus.flags.tolist() == [1, 0, 2]
    assert "".join(spelled(corpus.read(i, 0, int(corpus.lengths[i]))) for i in range(3)) == long


def test_held_out_and_rest_are_the_whole_and_fixed_by_the_seed(tmp_path):
    corpus = store(tmp_path, random_proteins(100))
    held_out = hold_out(corpus, 0.1, seed=3)
    train = Part(corpus, without=np.sort(held_out))
    rest = train.entry(np.arange(len(train))).tolist()
    assert sorted(rest + held_out.tolist()) == list(range(100))
    assert len(held_out) == 10
    again, other = hold_out(corpus, 0.1, seed=3), hold_out(corpus, 0.1, seed=4)
    assert again.tolist() == held_out.tolist() != other.tolist()


def test_one_sequence_alone_holds_nothing_out(tmp_path):
    assert not len(hold_out(store(tmp_path, ["MKTAY"])))


def test_copies_of_training_sequences_leave_the_held_out_file(tmp_path):
    train = store(tmp_path, ["MKTAY", "GGGG"])
    held_out, copies = without_copies(store(tmp_path, ["GGGG", "WWWW"], name="valid.fasta"), train)
    assert copies == 1
    assert [spelled(held_out.corpus.read(int(e), 0, 4)) for e in held_out.entry(np.arange(len(held_out)))] == ["WWWW"]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5000), key=st.integers(0, 2**40))
def test_the_order_of_an_epoch_is_a_permutation(n, key):
    order = shuffled(np.arange(n), n, key)
    assert np.array_equal(np.sort(order), np.arange(n))
    some = np.arange(0, n, 7)
    assert np.array_equal(shuffled(some, n, key), order[some])  # and needs nothing but the number itself


def test_two_epochs_have_different_orders():
    assert not np.array_equal(shuffled(np.arange(1000), 1000, 0), shuffled(np.arange(1000), 1000, 1))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12), size=st.integers(10, 120), seed=st.integers(0, 99)
)
def test_a_crop_is_a_stretch_with_start_and_end_tokens_only_where_the_sequence_has_them(
    tmp_path_factory, lengths, size, seed
):
    random = np.random.default_rng(seed)
    sequences = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in lengths]
    corpus = store(tmp_path_factory.mktemp("store"), sequences)
    crops = Crops(Part(corpus), PROTEIN, size, seed)
    table = crops.table(np.arange(3 * crops.n))
    for row, n_tokens in zip(table, crops.sizes(table), strict=True):
        tokens = crops.read(row)
        text = spelled(tokens)
        body = text.removeprefix("<cls>").removesuffix("<eos>")
        whole = spelled(corpus.read(int(row[0]), 0, int(corpus.lengths[row[0]])))
        assert whole[row[1] : row[2]] == body
        assert len(tokens) == n_tokens <= size
        assert text.startswith("<cls>") == (row[1] == 0)
        assert text.endswith("<eos>") == (row[2] == len(whole))


def test_every_residue_is_read_about_equally_often(tmp_path):
    corpus = store(tmp_path, random_proteins(3, 300, 700))
    crops = Crops(Part(corpus), PROTEIN, 102, 0)
    seen = [np.zeros(int(length)) for length in corpus.lengths]
    for entry, first, last, _ in crops.table(np.arange(400 * crops.n)):
        seen[entry][first:last] += 1
    middle = np.concatenate([each[100:-100] for each in seen])
    assert middle.min() > 0.7 * middle.mean()
    assert middle.max() < 1.4 * middle.mean()


def test_an_epoch_reads_every_entry_and_the_next_one_other_crops(tmp_path):
    corpus = store(tmp_path, random_proteins(30, 200, 400))
    crops = Crops(Part(corpus), PROTEIN, 66, 0)
    first, second = crops.table(np.arange(crops.n)), crops.table(np.arange(crops.n, 2 * crops.n))
    assert set(first[:, 0]) == set(second[:, 0]) == set(range(30))
    assert {tuple(row[:3]) for row in first} != {tuple(row[:3]) for row in second}
    assert len(set(np.concatenate([first, second])[:, 3])) == 2 * crops.n  # no two crops are masked alike


def test_a_crop_without_room_for_a_residue_is_refused(tmp_path):
    with pytest.raises(PlftError, match="no room"):
        Crops(Part(store(tmp_path, ["MKTAY"])), PROTEIN, 2)
