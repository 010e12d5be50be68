"""Which letters a sequence may hold, and what happens to the others."""

import pytest

from plft.alphabet import ALPHABETS, DNA, PROTEIN, RNA, clean, guess_alphabet, tidy, unknown_letters
from plft.errors import PlftError


def test_tidy_removes_all_white_space_and_raises_the_case():
    assert tidy("  m k\tt\r\nv ") == "MKTV"
    assert tidy("MKTV") == "MKTV"


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        (["MKTVRQERLK"], PROTEIN),
        (["ACGTNNACGT", "acgt"], DNA),
        (["ACGUACGU"], RNA),
        (["ACGT" * 24 + "RYK"], DNA),  # 96 of 99 letters are plain bases
        (["ACGTRYKM"], PROTEIN),
        ([], PROTEIN),
        (["AAAA"], DNA),
    ],
)
def test_the_alphabet_is_guessed_from_the_share_of_bases(sequences, expected):
    assert guess_alphabet(sequences) is expected


def test_the_guess_looks_at_the_first_sequences_only():
    def endless():
        while True:
            yield "MKTV"

    assert guess_alphabet(endless()) is PROTEIN


def test_letters_outside_the_protein_alphabet_become_x_at_the_same_place():
    cleaned = clean("MJ*K-.XB", PROTEIN)
    assert (cleaned.sequence, cleaned.n_unknown, cleaned.keep) == ("MXXKXXXB", 4, True)


def test_iupac_codes_become_n_and_u_becomes_t_without_being_counted():
    cleaned = clean("ACGURYN", DNA)
    assert (cleaned.sequence, cleaned.n_unknown) == ("ACGTNNN", 2)
    assert clean("ACGT", RNA).sequence == "ACGU"


def test_drop_marks_the_sequence_and_still_keeps_its_length():
    assert clean("MJ", PROTEIN, "drop").keep is False
    assert clean("MK", PROTEIN, "drop").keep is True
    assert clean("ACGU", DNA, "drop").keep is True


def test_error_names_the_place_the_letter_and_the_way_on():
    with pytest.raises(PlftError) as caught:
        clean("MKTJ", PROTEIN, "error", "train.csv, row 7 (id seq3)")
    assert str(caught.value) == (
        "train.csv, row 7 (id seq3): 'J' at position 4 is not an amino acid. Correct it, or pass --unknown-letters map."
    )


def test_error_accepts_respelled_letters_and_finds_the_first_odd_one():
    assert clean("ACGU", DNA, "error").sequence == "ACGT"
    with pytest.raises(PlftError, match="'R' at position 3 is not a base of DNA"):
        clean("UARU", DNA, "error")


def test_a_misspelled_policy_is_answered_with_a_suggestion():
    with pytest.raises(PlftError, match="Did you mean 'map'"):
        clean("MK", PROTEIN, "mapp")


def test_letters_outside_ascii_count_as_unknown():
    cleaned = clean("MÄK", PROTEIN)
    assert (cleaned.sequence, cleaned.n_unknown) == ("MXK", 1)
    with pytest.raises(PlftError, match="position 2"):
        clean("MÄK", PROTEIN, "error")


@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=lambda each: each.name)
def test_cleaning_keeps_the_length_leaves_known_letters_and_is_idempotent(alphabet):
    everything = "".join(map(chr, range(33, 127))).upper()
    once = clean(everything, alphabet)
    assert len(once.sequence) == len(everything)
    assert set(once.sequence) <= set(alphabet.letters + alphabet.ambiguous)
    assert clean(once.sequence, alphabet) == type(once)(once.sequence, 0)
    fine = alphabet.letters + alphabet.ambiguous
    assert clean(fine, alphabet).sequence == fine


def test_unknown_letters_are_returned_in_order():
    assert unknown_letters("MJK*", PROTEIN) == "J*"
    assert unknown_letters("ACGU", DNA) == ""
