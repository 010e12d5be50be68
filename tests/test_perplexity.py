"""Perplexity against plain loops over the transformers model, and against numbers worked out by hand."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from commandline import plft
from plft import perplexity
from plft.errors import PlftError
from plft.language_models import load_language_model
from plft.perplexity import (
    LanguageModel,
    choose_method,
    fitted_trust,
    masked_from_visible,
    score,
    stream,
    total,
    write_scores,
)
from plft.records import Record

PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "MKV", "GGSGGSLLAVNWYDERTTPPQIK", "ACDEFGHIK"]


def records(*sequences: str) -> list[Record]:
    return [Record(f"s{at}", each) for at, each in enumerate(sequences)]


def language_of(family: str) -> LanguageModel:
    checkpoint = tiny.checkpoint(family)
    return LanguageModel(load_language_model(checkpoint).eval(), checkpoint)


@torch.no_grad()
def masked_one_by_one(family: str, sequence: str) -> list[float]:
    """-log p of every residue, each masked alone, one forward pass of a single sequence at a time."""
    language = language_of(family)
    encoded = language.tokenizer.encode(sequence)
    found = []
    for place, (start, stop) in enumerate(encoded.spans.tolist()):
        if stop > start:
            ids = torch.tensor([encoded.input_ids.tolist()])
            target = int(ids[0, place])
            ids[0, place] = language.checkpoint.tokenizer.mask_token_id
            found.append(-float(language.model(input_ids=ids).logits[0, place].log_softmax(-1)[target]))
    return found


# --- against plain loops


@pytest.mark.parametrize("family", ["esm2", "esm1b", "esmc", "protbert", "generic"])
def test_exact_pseudo_perplexity_is_that_of_a_loop_over_masked_copies(family):
    for sequence, found in zip(PROTEINS, score(language_of(family), PROTEINS, "exact"), strict=True):
        losses = masked_one_by_one(family, sequence)
        assert (found.length, found.n_scored, found.n_residues) == (len(sequence),) * 3
        assert found.nll == pytest.approx(sum(losses), rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_a_6_mer_is_masked_as_one_token():
    sequence = "ACGTTGCAACGTAT"  # two words of six, then A and T alone
    (found,) = score(language_of("nucleotide-transformer"), sequence, "exact")
    losses = masked_one_by_one("nucleotide-transformer", sequence)
    assert (found.n_scored, found.n_residues) == (4, 14)
    assert found.nll == pytest.approx(sum(losses), rel=1e-5)
    assert found.perplexity_per_residue == pytest.approx(math.exp(sum(losses) / 14), rel=1e-5)


@torch.no_grad()
def test_overlapping_words_are_masked_together():
    language = language_of("dnabert")  # words of three letters
    (found,) = score(language, "ACGTTGCA")
    ids = torch.tensor([language.tokenizer.encode("ACGTTGCA").input_ids.tolist()])
    loss = 0.0
    for place in range(1, 7):
        copy = ids.clone()
        copy[0, max(1, place - 2) : min(7, place + 3)] = language.checkpoint.tokenizer.mask_token_id
        loss -= float(language.model(input_ids=copy).logits[0, place].log_softmax(-1)[ids[0, place]])
    assert (found.n_scored, found.n_residues, found.method) == (6, 8, "exact")
    assert found.nll == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("family", ["protgpt2", "mistral-dna"])
@torch.no_grad()
def test_a_causal_model_predicts_each_token_from_those_before(family):
    language = language_of(family)
    sequence = tiny.sequence(language.checkpoint, 70)
    (found,) = score(language, sequence)
    encoded = language.tokenizer.encode(sequence)
    loss, n_scored = 0.0, 0
    for place, (start, stop) in enumerate(encoded.spans.tolist()):
        if stop > start:
            ids = torch.tensor([encoded.input_ids[:place].tolist()])  # what stands before, special tokens included
            loss -= float(language.model(input_ids=ids).logits[0, -1].log_softmax(-1)[int(encoded.input_ids[place])])
            n_scored += 1
    assert (found.n_scored, found.n_residues) == (n_scored, 70)
    assert found.nll == pytest.approx(loss, rel=1e-4)
    assert found.perplexity_per_residue == pytest.approx(math.exp(loss / 70), rel=1e-4)


@pytest.mark.parametrize("family", ["prott5", "prostt5"])
@torch.no_grad()
def test_a_span_model_answers_one_sentinel_at_a_time(family):
    language = language_of(family)
    (found,) = score(language, "MKTAYIAK")
    sentinel = language.checkpoint.tokenizer.get_vocab()["<extra_id_0>"]
    encoded = language.tokenizer.encode("MKTAYIAK")
    loss = 0.0
    for place, (start, stop) in enumerate(encoded.spans.tolist()):
        if stop > start:
            ids = torch.tensor([encoded.input_ids.tolist()])
            target = int(ids[0, place])
            ids[0, place] = sentinel
            labels = torch.tensor([[sentinel, target]])  # transformers shifts them to the right itself
            loss -= float(language.model(input_ids=ids, labels=labels).logits[0, 1].log_softmax(-1)[target])
    assert found.n_scored == 8
    assert found.nll == pytest.approx(loss, rel=1e-5)


# --- one pass


class Frequencies(nn.Module):
    """The perfect masked model of independent letters: told their frequencies, and how pretraining corrupts.

    At a mask it answers the frequencies; at a visible letter what Bayes' rule gives for a token that was chosen and
    stayed (a share `kept`) or was replaced by any of the 20 letters (10 %).
    """

    def __init__(self, letters: list[int], frequencies: list[float], mask: int, kept: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=33, decoder_start_token_id=None)
        self.weight = nn.Parameter(torch.zeros(1))
        self.letters, self.frequencies, self.mask, self.kept = letters, frequencies, mask, kept

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        probabilities = torch.full((*input_ids.shape, 33), 1e-12, dtype=torch.float64)
        for row, column in np.ndindex(*input_ids.shape):
            seen = int(input_ids[row, column])
            for letter, p in zip(self.letters, self.frequencies, strict=True):
                weight = 1.0 if seen == self.mask else self.kept * (seen == letter) + 0.1 / 20
                probabilities[row, column, letter] = p * weight
        return SimpleNamespace(logits=(probabilities / probabilities.sum(-1, keepdim=True)).log())


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("method", ["exact", "one-pass"])
def test_both_methods_find_the_frequencies_of_a_perfect_model_of_independent_letters(method, kept, monkeypatch):
    monkeypatch.setattr(perplexity, "FITTED_ON", 2)  # of four tokens: the two others follow
    checkpoint = tiny.checkpoint("esm2")
    letters = checkpoint.tokenizer.convert_tokens_to_ids(list("ACDEFGHIKLMNPQRSTVWY"))
    frequencies = (np.arange(1, 21) / 210).tolist()  # A 1/210, C 2/210, ..., Y 20/210
    model = Frequencies(letters, frequencies, checkpoint.tokenizer.mask_token_id, kept)
    (found,) = score(LanguageModel(model, checkpoint), "ACYY", method)
    assert found.nll == pytest.approx(-math.log(1 * 2 * 20 * 20 / 210**4), rel=1e-6)


def test_the_estimate_from_a_visible_token_by_hand():
    # trust 4: q = 1 stays 1; uniform p = 1/4 of four letters is seen as q = (1 + 1/4) / 2 = 5/8
    assert np.exp(masked_from_visible(np.log([1.0, 5 / 8]), 4)) == pytest.approx([1.0, 0.25])
    assert np.exp(masked_from_visible(np.log([0.5]), 12)) == pytest.approx([0.5 / 7])
    assert np.exp(masked_from_visible(np.log([0.5]), 0)) == pytest.approx([0.5])


def test_trust_is_fitted_to_the_mean_of_masked_tokens():
    assert fitted_trust(np.log([5 / 8]), np.log([1 / 4])) == pytest.approx(4)
    assert fitted_trust(np.log([0.5, 0.5]), np.log([0.25, 1.0])) == pytest.approx(0, abs=1e-9)  # their mean is 0.5
    assert fitted_trust(np.log([0.5]), np.log([0.6])) == pytest.approx(0, abs=1e-9)  # a mask helps: nothing to undo


def test_one_pass_turns_down_what_the_unmasked_pass_says():
    language = language_of("esm2")
    ids = torch.tensor([language.tokenizer.encode("MKTAYIAK").input_ids.tolist()])
    with torch.no_grad():
        q = language.model(input_ids=ids).logits[0].softmax(-1)[torch.arange(10), ids[0]][1:-1].double()
    trust = fitted_trust(q.log().numpy(), -np.array(masked_one_by_one("esm2", "MKTAYIAK")))
    (found,) = score(language, "MKTAYIAK", "one-pass")
    assert found.nll == pytest.approx(-float((q / (trust * (1 - q) + 1)).log().sum()), rel=1e-5)
    assert found.method == "one-pass"


def test_few_sequences_are_scored_exactly_and_many_in_one_pass(monkeypatch):
    family = tiny.checkpoint("esm2").family
    monkeypatch.setattr(perplexity, "EXACT_TOKENS", 50)  # a sequence of 5 residues takes 5 copies of 5 tokens
    for n, expected in ((2, "exact"), (3, "one-pass")):
        method, again = choose_method(family, None, records(*["MKTAY"] * n))
        assert (method, [each.id for each in again]) == (expected, [f"s{at}" for at in range(n)])


def test_a_hard_limit_is_counted_for_what_is_read(monkeypatch):
    family = replace(tiny.checkpoint("esm2").family, max_tokens=6)
    monkeypatch.setattr(perplexity, "EXACT_TOKENS", 50)
    assert choose_method(family, None, records("MKTAY" * 10))[0] == "exact"  # six copies of six tokens


@pytest.mark.parametrize(("family", "method"), [("prott5", "one-pass"), ("dnabert", "one-pass"), ("esm2", "fast")])
def test_a_method_that_a_family_does_not_have_is_named(family, method):
    with pytest.raises(PlftError, match=f"is not scored with method '{method}'. Methods for it: exact"):
        score(tiny.checkpoint(family), "ACGT", method)


# --- properties


@pytest.mark.parametrize("family", ["esm2", "dna", "protbert", "prott5", "protgpt2", "mistral-dna"])
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(family):
    language = language_of(family)
    for weight in language.model.parameters():
        weight.data.zero_()
    (found,) = score(language, tiny.sequence(language.checkpoint, 30), "exact")
    assert found.perplexity == pytest.approx(language.model.config.vocab_size, rel=1e-5)


@pytest.mark.parametrize("family", tiny.TINY)
def test_neither_batches_nor_order_change_a_score(family):
    language = language_of(family)
    sequences = [tiny.sequence(language.checkpoint, n)[::step] for n, step in ((40, 1), (9, 1), (61, 2), (25, 1))]
    for method in perplexity.methods_of(language.family):
        together = score(language, sequences, method)
        backwards = score(language, sequences[::-1], method, budget=70)[::-1]
        singly = score(language, sequences, method, budget=1)
        for one, two, three in zip(together, backwards, singly, strict=True):
            assert one.nll == pytest.approx(two.nll, rel=2e-5)
            assert one.nll == pytest.approx(three.nll, rel=2e-5)
            assert one.length == two.length == three.length


def test_an_exact_score_does_not_depend_on_the_sequences_beside_it():
    together = score(language_of("esm2"), PROTEINS, "exact")
    alone = [score(language_of("esm2"), each, "exact")[0] for each in PROTEINS]
    assert [each.nll for each in together] == pytest.approx([each.nll for each in alone], rel=1e-5)


def test_a_stream_holds_a_chunk_at_a_time_and_keeps_the_order(monkeypatch):
    monkeypatch.setattr(perplexity, "CHUNK_RESIDUES", 30)
    asked = []

    def source():
        for record in records(*PROTEINS, *PROTEINS):
            asked.append(record.id)
            yield record

    found = stream(language_of("esm2"), source(), "one-pass")
    first = next(found)
    assert len(asked) == len(first) < 8
    rest = [each for chunk in found for each in chunk]
    assert [each.id for each in [*first, *rest]] == [f"s{at}" for at in range(8)]
    assert [each.nll for each in [*first, *rest][4:]] == pytest.approx([s.nll for s in [*first, *rest][:4]], rel=1e-5)


def test_a_model_in_training_is_scored_without_dropout_and_trains_on():
    checkpoint = tiny.checkpoint("protgpt2")
    config = replace(
        checkpoint, config=checkpoint.config.__class__(**checkpoint.config.to_dict() | {"resid_pdrop": 0.5})
    )
    language = LanguageModel(load_language_model(config).train(), config)
    assert score(language, "MKTAYIAKQR") == score(language, "MKTAYIAKQR")
    assert language.model.training


# --- what counts


def test_unknown_letters_are_read_as_x_and_not_scored():
    language = language_of("esm2")
    found, plain = score(language, ["MKJTX", "mkxtx"], "exact")
    assert (found.length, found.n_scored, found.n_unknown) == (5, 3, 1)
    assert found.nll == pytest.approx(plain.nll)


def test_letters_that_a_family_reads_as_x_are_not_scored():
    assert [each.n_scored for each in score(language_of("protbert"), ["MKUT", "MKCT"], "exact")] == [3, 4]


def test_a_word_with_an_unknown_letter_is_not_scored():
    (found,) = score(language_of("nucleotide-transformer"), "ACGTACNACGTAC", "exact")
    assert (found.n_scored, found.n_residues) == (2, 12)


def test_a_sequence_of_unknown_letters_has_no_perplexity():
    (found,) = score(language_of("esm2"), "XX")
    assert (found.n_scored, found.nll) == (0, 0.0)
    assert math.isnan(found.perplexity)


def test_residues_beyond_a_hard_limit_are_counted_and_said(monkeypatch):
    monkeypatch.setattr(perplexity, "FITTED_ON", 8)
    language = language_of("esm1b")  # 1022 residues
    found = score(language, ["MKTAY" * 220, "MKTAY"], "one-pass")
    assert [(each.length, each.n_scored, each.n_residues, each.n_cut) for each in found] == [
        (1100, 1022, 1022, 78),
        (5, 5, 5, 0),
    ]
    assert found[0].nll == pytest.approx(score(language, [("MKTAY" * 220)[:1022], "MKTAY"], "one-pass")[0].nll)
    sentences = "\n".join(total(found).sentences)
    assert "1 sequences are longer than the model can read" in sentences
    assert "78 of all 1,105 residues are left out" in sentences


def test_the_total_weighs_every_token_the_same():
    scores = [
        perplexity.Score("a", 3, 3, 3, 3 * math.log(2)),
        perplexity.Score("b", 1, 1, 1, math.log(32)),
    ]
    summed = total(iter(scores))
    assert summed.perplexity == pytest.approx(4)  # (2 * 2 * 2 * 32) ** (1/4), not the mean of 2 and 32
    assert (summed.sequences, summed.length, summed.n_scored) == (2, 4, 4)


def test_a_model_that_has_gone_astray_still_has_a_perplexity():
    assert 1e300 < perplexity.Score("a", 1, 1, 1, 1e5).perplexity < math.inf


def test_an_empty_sequence_and_dna_for_a_protein_model_are_refused():
    with pytest.raises(PlftError, match="Sequence 2 is empty"):
        score(language_of("esm2"), ["MKT", " "])
    with pytest.raises(PlftError, match="look like dna, but this model reads protein"):
        score(language_of("esm2"), "ACGT" * 50)


# --- files and the command


def test_a_table_has_a_row_per_sequence_in_order(tmp_path):
    language = language_of("esm2")
    summed = write_scores(language, records(*PROTEINS), tmp_path / "scores.csv", "exact")
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert list(rows[0]) == ["id", "length", "n_scored", "nll", "perplexity"]
    for row, each in zip(rows, score(language, PROTEINS, "exact"), strict=True):
        assert (int(row["length"]), int(row["n_scored"])) == (each.length, each.n_scored)
        assert float(row["nll"]) == pytest.approx(each.nll, rel=1e-6)
        assert float(row["perplexity"]) == pytest.approx(each.perplexity, rel=1e-6)
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s3"]
    assert summed == total(score(language, records(*PROTEINS), "exact"))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    file = tmp_path / "proteins.fasta"
    file.write_text("".join(f">s{at}\n{each}\n" for at, each in enumerate(PROTEINS)))
    return file


def test_the_last_line_of_the_command_is_the_total(fasta, tmp_path):
    result = plft("score-lm", "scratch:tiny-esm2", str(fasta), "-o", str(tmp_path / "scores.csv"))
    assert result.code == 0, result.err
    expected = total(score("scratch:tiny-esm2", PROTEINS)).perplexity
    assert result.out.splitlines() == [str(tmp_path / "scores.csv"), f"perplexity {expected:.6g}"]
    assert "4 sequences, 57 tokens scored, method exact" in result.err


def test_pieces_are_reported_per_token_and_per_residue(fasta, tmp_path):
    result = plft("score-lm", "scratch:tiny-protgpt2", str(fasta), "-o", str(tmp_path / "scores.csv"))
    assert [line.rpartition(" ")[0] for line in result.out.splitlines()[1:]] == ["perplexity per residue", "perplexity"]
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert all(float(row["perplexity_per_residue"]) < float(row["perplexity"]) for row in rows)


def test_the_command_prints_json(fasta):
    result = plft("score-lm", "scratch:tiny-esm2", str(fasta), "--method", "one-pass", "--json")
    content = json.loads(result.out)
    assert (content["method"], content["sequences"], content["n_scored"]) == ("one-pass", 4, 57)
    assert content["perplexity"] == pytest.approx(math.exp(content["nll"] / 57))
    assert "fitted to 512 masked tokens" in result.err


def test_the_command_reads_a_folder_and_a_table(fasta, tmp_path):
    checkpoint = tiny.checkpoint("dna")
    load_language_model(checkpoint).save_pretrained(tmp_path / "model")
    checkpoint.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "dna.csv").write_text("name,dna\na,ACGTTGCA\nb,TTTTNACG\n")
    words = ("--sequence-column", "dna", "--id-column", "name", "-o", str(tmp_path / "s.csv"))
    result = plft("score-lm", str(tmp_path / "model"), str(tmp_path / "dna.csv"), *words)
    assert result.code == 0, result.err
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [(row["id"], row["length"], row["n_scored"]) for row in rows] == [("a", "8", "8"), ("b", "8", "7")]


def headless(folder: Path) -> str:
    return str(tiny.save(tiny.checkpoint("esm2"), folder / "encoder"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("score-lm scratch:tiny-esm2 {folder}/empty.fasta", "empty.fasta"),
        ("score-lm scratch:tiny-esm2 {folder}/nowhere.fasta", "No such file"),
        ("score-lm {headless} {folder}/proteins.fasta", "holds no language-model head"),
        ("score-lm scratch:tiny-esm2 {folder}/proteins.fasta -o {folder}/proteins.fasta", "table format"),
        ("score-lm scratch:tiny-prott5 {folder}/proteins.fasta --method one-pass", "Methods for it: exact"),
        ("score-lm scratch:esm2-6x190x3 {folder}/proteins.fasta", "Try 'esm2-6x192x3'"),
    ],
)
def test_wrong_inputs_are_one_line(words, message, fasta, tmp_path):
    (tmp_path / "empty.fasta").write_text("")
    result = plft(*words.format(folder=tmp_path, headless=headless(tmp_path)).split())
    assert result.code == 1
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
