"""Streams of batches, the budget, and language models trained, interrupted, resumed and loaded again."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer, TrainerCallback

import tiny
from commandline import plft
from fakes import StopAt
from plft.attention import use_packing
from plft.budget import SETTLE, Budget
from plft.checkpoints import resolve
from plft.config import language_model_config
from plft.corpus import Crops, Part, hold_out, tokenise
from plft.errors import PlftError
from plft.homology import find_mmseqs
from plft.language_models import load_language_model
from plft.language_preparation import prepare
from plft.language_run import affordable_look, run_language_model
from plft.ngrams import ngram_perplexities
from plft.objectives import NOTHING, OBJECTIVES, LanguageModelTask, Symbols
from plft.preparation import quiet
from plft.pretraining import Recipe, Stream
from plft.records import read_records

MOTIF = "MKTAYIAKQRQISFVKSHFSRQ"


@pytest.fixture(autouse=True)
def _own_cache_and_no_search(tmp_path, monkeypatch):
    monkeypatch.setenv("PLFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("plft.language_preparation.find_mmseqs", lambda: None)  # takes seconds; has a test of its own


def proteins(n: int, seed: int = 0) -> list[str]:
    """Variations of one motif, so that there is something to learn."""
    random = np.random.default_rng(seed)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    found = []
    for _ in range(n):
        sequence = list(MOTIF * int(random.integers(1, 5)))
        for place in random.integers(0, len(sequence), len(sequence) // 10):
            sequence[place] = str(random.choice(letters))
        found.append("".join(sequence[int(random.integers(0, 5)) :]))
    return found


def write(file: Path, sequences: list[str]) -> str:
    file.write_text("".join(f">s{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return str(file)


def dna(n: int, length: int = 300) -> list[str]:
    random = np.random.default_rng(1)
    return ["".join(random.choice(list("ACGT"), length)) for _ in range(n)]


@pytest.fixture
def corpus(tmp_path) -> str:
    return write(tmp_path / "proteins.fasta", proteins(120))


def settings(file: str, **others):
    values = {"files": [file], "model": "scratch:tiny-esm2", "steps": 12, "crop": 64, "batch_residues": 256}
    values |= {"step_residues": 512, "held_out_share": 0.05} | others
    return language_model_config({name: value for name, value in values.items() if value is not None})


# -- streams -----------------------------------------------------------------------------------------------------------


def stream(tmp_path: Path, rank: int = 0, world: int = 1, family: str = "esm2", budget: int = 200) -> Stream:
    checkpoint = tiny.checkpoint(family)
    tokenizer = checkpoint.residue_tokenizer
    store = tokenise([Path(write(tmp_path / "p.fasta", proteins(60)))], tokenizer, tmp_path)
    pad_id = None if family == "esm2" else tokenizer.pad_token_id
    recipe = Recipe(OBJECTIVES[checkpoint.family.objective], Symbols.of(checkpoint), 0.15, budget, pad_id)
    return Stream(Crops(Part(store), tokenizer, 64, 0), recipe, rank, world)


def first(batches, n: int) -> list[dict]:
    return [batch for batch, _ in zip(batches, range(n), strict=False)]


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("family", ["esm2", "prott5"])
def test_a_stream_taken_up_later_gives_the_batches_it_would_have_given(tmp_path, family):
    whole = first(stream(tmp_path, family=family), 40)
    later = stream(tmp_path, family=family)
    later.start = 25
    assert all(same(a, b) for a, b in zip(whole[25:], first(later, 15), strict=True))


def test_two_processes_share_the_batches_that_one_would_see(tmp_path):
    alone = first(stream(tmp_path), 20)
    shares = [first(stream(tmp_path, rank, 2), 10) for rank in (0, 1)]
    assert all(same(a, b) for a, b in zip(alone[0::2], shares[0], strict=True))
    assert all(same(a, b) for a, b in zip(alone[1::2], shares[1], strict=True))


def test_packed_batches_are_full_and_never_above_the_budget(tmp_path):
    sizes = [batch["input_ids"].numel() for batch in first(stream(tmp_path), 60)]
    assert max(sizes) <= 200
    assert np.mean(sizes) > 200 - 64
    assert all(sum(batch["packing"].lengths) == batch["input_ids"].numel() for batch in first(stream(tmp_path), 5))


def test_a_stream_masks_anew_in_every_epoch(tmp_path):
    made = stream(tmp_path)
    n_batches = sum(1 for _ in made.recipe.cut(made.crops, made.crops.n))
    batches = first(made, 2 * n_batches)
    masks = [tuple(batch["labels"].tolist()) for batch in batches]
    assert len(set(masks)) == len(masks)


# -- the budget --------------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    budget = Budget(steps=100, warmup_share=0.1, decay_share=0.3)
    factors = [budget.factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert set(factors[10:70]) == {1.0}
    assert factors[70:] == pytest.approx(np.arange(30, -1, -1) / 30)


def test_it_warms_up_too_where_all_of_the_budget_is_decay():
    budget = Budget(steps=100, warmup_share=0.1, decay_share=1)
    factors = [budget.factor(step) for step in range(101)]
    assert factors[:3] == pytest.approx([0.1 * 1.0, 0.2 * 0.99, 0.3 * 0.98])
    assert factors[10:] == pytest.approx(np.arange(90, -1, -1) / 100)


def test_a_budget_in_minutes_ends_in_time_whatever_the_speed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("plft.budget.time.monotonic", lambda: now[0])
    budget, control = Budget(minutes=10, started=0.0, reserve=20), SimpleNamespace(should_training_stop=False)
    state, rates = SimpleNamespace(global_step=0, max_steps=0), []
    budget.on_train_begin(None, state, control)
    while not control.should_training_stop:
        rates.append(budget.factor(state.global_step))
        now[0] += 0.5 if now[0] < 200 else 0.8  # the machine becomes slower on the way
        state.global_step += 1
        budget.on_step_end(None, state, control)
    assert 560 < now[0] <= 581
    assert state.global_step > SETTLE
    assert rates[-1] < 0.02
    assert max(rates) == 1.0


def test_a_budget_in_minutes_is_kept_even_where_a_step_takes_half_of_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("plft.budget.time.monotonic", lambda: now[0])
    budget, control = Budget(minutes=2, started=0.0, reserve=10), SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(global_step=0, max_steps=0)
    budget.on_train_begin(None, state, control)
    while not control.should_training_stop:
        now[0] += 40
        state.global_step += 1
        budget.on_step_end(None, state, control)
    assert state.global_step == 2


def test_an_estimate_far_from_the_first_guess_moves_a_warm_up_into_decay_too(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("plft.budget.time.monotonic", lambda: now[0])
    budget, control = Budget(minutes=10, decay_share=1, started=0.0, reserve=0, guess=6000), SimpleNamespace()
    state = SimpleNamespace(global_step=0, max_steps=0)
    budget.on_train_begin(None, state, control)
    rates = []
    while not getattr(control, "should_training_stop", False):
        rates.append(budget.factor(state.global_step))
        now[0] += 1  # 600 steps, not 6,000
        state.global_step += 1
        budget.on_step_end(None, state, control)
    assert max(rates) > 0.9
    assert rates.index(max(rates)) < 40


def test_a_slow_first_step_after_an_interruption_does_not_end_the_stable_phase(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("plft.budget.time.monotonic", lambda: now[0])
    budget, control = Budget(minutes=75, started=0.0, reserve=0, guess=3000), SimpleNamespace()
    budget.used = 1500 * 1.5
    state = SimpleNamespace(global_step=1500, max_steps=0)
    budget.on_train_begin(None, state, control)
    for step in range(1500, 2090):
        assert budget.factor(step) == 1.0
        now[0] += 6.5 if step == 1500 else 1.5  # batches that were read before are cut once more
        state.global_step += 1
        budget.on_step_end(None, state, control)
    assert budget.total == pytest.approx(3000, rel=0.01)
    assert budget.decay_from == pytest.approx(2100, rel=0.01)


def test_a_budget_keeps_in_a_checkpoint_what_it_decided():
    budget = Budget(minutes=1, started=0.0)
    budget.total, budget.decay_from, budget.counted = 123, 77, {"tokens": 5}
    state = budget.state()
    again = Budget(**state["args"])
    for name, value in state["attributes"].items():
        setattr(again, name, value)
    assert (again.total, again.decay_from, again.counted, again.minutes) == (123, 77, {"tokens": 5}, 1)
    assert again.factor(100) == budget.factor(100)


def test_a_first_estimate_that_is_far_too_low_does_not_end_the_run(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("plft.budget.time.monotonic", lambda: now[0])
    budget, control = Budget(minutes=10, started=0.0, reserve=0, guess=5), SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(global_step=0, max_steps=5)
    budget.on_train_begin(None, state, control)
    while not control.should_training_stop:
        now[0] += 20
        state.global_step += 1
        budget.on_step_end(None, state, control)
    assert now[0] == pytest.approx(600, abs=40)


# -- counting ----------------------------------------------------------------------------------------------------------


def test_counted_perplexities_are_those_worked_out_by_hand(tmp_path):
    tokenizer = tiny.checkpoint("esm2").residue_tokenizer
    train = tokenise([Path(write(tmp_path / "t.fasta", ["AAAC"]))], tokenizer, tmp_path)
    held = tokenise([Path(write(tmp_path / "h.fasta", ["AC"]))], tokenizer, tmp_path)
    found = ngram_perplexities(Part(train), Part(held), np.zeros(33, dtype=bool))
    # counts A 3, C 1, two symbols seen; A comes first once, after A come A twice and C once
    assert found["unigram"] == pytest.approx(math.exp(-(math.log(4 / 6) + math.log(2 / 6)) / 2))
    assert found["bigram"] == pytest.approx(math.exp(-(math.log(2 / 3) + math.log(2 / 5)) / 2))


def test_a_causal_model_is_judged_by_residues_as_counting_is(tmp_path):
    checkpoint = tiny.checkpoint("mistral-dna")
    tokenizer, symbols = checkpoint.residue_tokenizer, Symbols.of(checkpoint)
    store = tokenise([Path(write(tmp_path / "d.fasta", ["ACGTTGCA" * 4]))], tokenizer, tmp_path)
    recipe = Recipe(OBJECTIVES["causal"], symbols, 0.15, 200)
    crops = Crops(Part(store), tokenizer, 64, 0)
    recipes, rows = (recipe, replace(recipe, measures=True)), crops.table(np.arange(1))
    learned, judged = (each.batch(crops, rows)["labels"] for each in recipes)
    end = checkpoint.tokenizer.sep_token_id
    assert int((learned == end).sum()) == 1
    assert not symbols.is_special[judged[judged != NOTHING].numpy()].any()
    assert torch.equal(learned[learned != end], judged[learned != end])


def test_pieces_are_learned_from_letters_as_the_model_reads_them():
    letters = "".join(np.random.default_rng(0).choice(list("ACGU"), 20_000))
    rna = resolve("scratch:mistral-dna-1m", sequences=[letters])
    assert rna.family.alphabet == "dna"
    assert not any("U" in piece for piece in rna.tokenizer.get_vocab() if not piece.startswith("["))


def test_a_rank_without_lora_is_refused(tmp_path):
    words = ["--model", "builtin:protein", "--rank", "4", "--steps", "1", "-o", str(tmp_path / "o")]
    done = plft("adapt", "a.fasta", *words)
    assert done.code == 1
    assert "--rank 4 has no effect with --method full" in done.err
    done = plft("adapt", "a.fasta", *words, "--set", "method=lora")  # which has the last word
    assert "No such file: a.fasta" in done.err


# -- runs --------------------------------------------------------------------------------------------------------------


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def test_a_run_lowers_perplexity_and_leaves_a_folder_that_transformers_loads(tmp_path, corpus):
    said: list[str] = []
    metrics = run_language_model(settings(corpus, steps=60, learning_rate=0.01), tmp_path / "m", say=said.append)
    after = metrics["perplexity"]["after"]["held_out"]
    assert after < 0.8 * metrics["perplexity"]["before"]["held_out"]
    assert metrics == json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert metrics["predicted_share"] == pytest.approx(0.15, abs=0.01)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    logits = model(**tokenizer(MOTIF, return_tensors="pt")).logits
    assert logits.shape == (1, len(MOTIF) + 2, 33)
    assert "plft_packed" not in (tmp_path / "m" / "config.json").read_text()
    assert AutoModel.from_pretrained(tmp_path / "m", add_pooling_layer=False).config.model_type == "esm"
    assert resolve(str(tmp_path / "m")).family.name == "esm2"
    assert any("held out" in sentence for sentence in said)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "proteins.fasta" in card
    assert metrics["data"]["files"]["proteins.fasta"] in card
    assert "a sample of at most 60,000 held-out tokens" in card
    rows = [line for line in card.splitlines() if line.count("|") == 4]
    assert f"| {metrics['tokens']:,} |" in rows[-1]
    assert rows[-1].endswith(f"| {after:.2f} |")  # the last row of the curve is measured as the table above it
    assert "<svg" in (tmp_path / "m" / "curve.svg").read_text()


def with_dropout(folder: Path) -> str:
    """A small ProtGPT2 that drops a fifth of its hidden states while it trains."""
    checkpoint = tiny.checkpoint("protgpt2")
    model = load_language_model(checkpoint)
    model.config.resid_pdrop = model.config.embd_pdrop = 0.2
    model.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("drops", [False, True])
def test_a_run_interrupted_three_times_ends_with_the_weights_of_an_undisturbed_one(tmp_path, corpus, drops):
    config = settings(corpus, model=with_dropout(tmp_path / "model") if drops else "scratch:tiny-esm2", save_steps=3)
    run_language_model(config, tmp_path / "whole")
    for step in (2, 5, 10):  # once before the first checkpoint, twice between two
        with pytest.raises(KeyboardInterrupt):
            run_language_model(config, tmp_path / "broken", resume=True, callbacks=[StopAt(step)])
    run_language_model(config, tmp_path / "broken", resume=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    histories = [
        [(row["step"], row.get("learning_rate"), row.get("held_out_loss")) for row in map(json.loads, lines)]
        for lines in ((tmp_path / name / "history.jsonl").read_text().splitlines() for name in ("whole", "broken"))
    ]
    assert histories[0] == histories[1]
    counts = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "broken")]
    for number in ("tokens", "predicted_share", "steps", "perplexity"):
        assert counts[0][number] == counts[1][number]


class SeesMuon(TrainerCallback):
    """Notes the precision of Muon's products."""

    def on_step_end(self, args, state, control, optimizer=None, **_):
        self.precision = optimizer.optimizer.parts[0].precision


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_of_muon_are_in_the_precision_of_training(tmp_path, corpus, precision, expected):
    seen = SeesMuon()
    config = settings(corpus, steps=1, precision=precision, held_out_share=0)
    run_language_model(config, tmp_path / "m", callbacks=[seen])
    assert seen.precision == expected


def test_a_new_model_is_trained_with_muon_and_one_to_go_on_from_with_adamw(tmp_path, corpus):
    found = {}
    run_language_model(settings(corpus, steps=1), tmp_path / "new")
    others = {"on": {}, "asked": {"optimizer": "muon"}, "lora": {"optimizer": "muon", "method": "lora"}}
    for name, options in others.items():
        run_language_model(settings(corpus, steps=1, model=str(tmp_path / "new"), **options), tmp_path / name)
    for name in ("new", *others):
        found[name] = json.loads((tmp_path / name / "choices.json").read_text())["optimizer"]
        assert {"muon": "| Muon and AdamW |", "adamw": "| AdamW |"}[found[name]] in (
            tmp_path / name / "README.md"
        ).read_text()
        state = torch.load(next((tmp_path / name / "checkpoints").glob("*/optimizer.pt")), weights_only=True)
        assert ("parts" in state) == (found[name] == "muon")
    assert found == {"new": "muon", "on": "adamw", "asked": "muon", "lora": "muon"}


def test_a_run_that_diverges_says_so_and_leaves_no_checkpoint(tmp_path, corpus):
    config = settings(corpus, learning_rate=1e30, max_grad_norm=1e30, steps=12, optimizer="adamw")
    with pytest.raises(PlftError, match=r"diverged.*--learning-rate"):
        run_language_model(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_nothing_masked_among_held_out_sequences_is_no_perplexity(tmp_path, corpus):
    peptide = write(tmp_path / "short.fasta", ["MKV"])
    metrics = run_language_model(settings(corpus, valid=[peptide], rate=1e-6, steps=2), tmp_path / "run")
    assert metrics["perplexity"]["after"] == {}
    assert "NaN" not in (tmp_path / "run" / "metrics.json").read_text()


@pytest.mark.parametrize("model", ["tiny-dna", "tiny-mistral-dna"])
def test_a_crop_is_as_long_as_asked_even_beyond_a_stretch_of_the_store(tmp_path, monkeypatch, model):
    monkeypatch.setattr("plft.language_preparation.BLOCK", 512)
    file = write(tmp_path / "genomes.fasta", dna(2, 750))
    options = {"crop": 1024, "batch_residues": 1024, "step_residues": 1024, "held_out_share": 0}
    run_language_model(settings(file, model=f"scratch:{model}", steps=1, **options), tmp_path / "run")
    store = next((tmp_path / "cache" / "corpora").glob("*/facts.json"))
    assert json.loads(store.read_text())["facts"]["entries"] == 4  # two sequences in both directions, none cut


def test_a_large_share_still_leaves_something_to_learn_from(tmp_path):
    file = write(tmp_path / "two.fasta", proteins(2))
    metrics = run_language_model(settings(file, held_out_share=0.8, steps=2), tmp_path / "run")
    assert metrics["data"]["held_out"] == 1


def test_a_run_is_not_resumed_by_another_number_of_processes(tmp_path, corpus):
    run_language_model(settings(corpus, steps=2), tmp_path / "run")
    choices = json.loads((tmp_path / "run" / "choices.json").read_text())
    assert choices["processes"] == 1
    (tmp_path / "run" / "choices.json").write_text(json.dumps(choices | {"processes": 2}))
    with pytest.raises(PlftError, match="begun by 2 processes"):
        run_language_model(settings(corpus, steps=2), tmp_path / "run", resume=True)


def test_held_out_files_that_change_are_noticed_too(tmp_path, corpus):
    valid = write(tmp_path / "valid.fasta", proteins(3, seed=5))
    run_language_model(settings(corpus, steps=2, valid=[valid]), tmp_path / "run")
    write(tmp_path / "valid.fasta", proteins(3, seed=6))
    with pytest.raises(PlftError, match="files have changed"):
        run_language_model(settings(corpus, steps=2, valid=[valid]), tmp_path / "run", resume=True)


def test_a_folder_claimed_and_no_more_can_be_resumed(tmp_path, corpus):
    run_language_model(settings(corpus, steps=2), tmp_path / "whole")
    (tmp_path / "claimed").mkdir()
    (tmp_path / "claimed" / "pretraining.yaml").write_text((tmp_path / "whole" / "pretraining.yaml").read_text())
    run_language_model(settings(corpus, steps=2), tmp_path / "claimed", resume=True)
    assert (tmp_path / "claimed" / "choices.json").is_file()
    assert (tmp_path / "claimed" / "held_out.json").read_text() == (tmp_path / "whole" / "held_out.json").read_text()


def test_fsdp_is_refused_before_anything_is_written(tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(PlftError, match=r"FSDP.*--multi_gpu"):
        run_language_model(settings(corpus, steps=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_muon_learns_more_in_as_many_steps(tmp_path, corpus):
    after = {}
    for optimizer in ("muon", "adamw"):
        metrics = run_language_model(settings(corpus, steps=40, optimizer=optimizer), tmp_path / optimizer)
        after[optimizer] = metrics["perplexity"]["after"]["held_out"]
    assert after["muon"] < after["adamw"]


def test_resuming_a_finished_run_changes_nothing(tmp_path, corpus):
    config = settings(corpus, save_steps=4)
    run_language_model(config, tmp_path / "m")
    before = weights(tmp_path / "m")
    run_language_model(config, tmp_path / "m", resume=True)
    assert all(torch.equal(before[name], each) for name, each in weights(tmp_path / "m").items())


def test_a_finished_run_without_its_checkpoints_is_not_begun_again_by_resuming(tmp_path, corpus):
    run_language_model(settings(corpus, steps=1), tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "checkpoints")
    before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}
    with pytest.raises(PlftError, match="is finished and its checkpoints are gone"):
        run_language_model(settings(corpus, steps=1), tmp_path / "m", resume=True)
    with pytest.raises(PlftError, match="Give only one of them"):
        run_language_model(settings(corpus, steps=1), tmp_path / "m", resume=True, overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == before


def test_resuming_with_other_settings_is_refused(tmp_path, corpus):
    run_language_model(settings(corpus, steps=1), tmp_path / "m")
    with pytest.raises(PlftError, match=r"other settings \(rate\)"):
        run_language_model(settings(corpus, steps=1, rate=0.3), tmp_path / "m", resume=True)


def test_a_folder_that_is_there_is_only_replaced_when_asked(tmp_path, corpus):
    run_language_model(settings(corpus, steps=1), tmp_path / "m")
    with pytest.raises(PlftError, match="exists already"):
        run_language_model(settings(corpus, steps=1), tmp_path / "m")
    (tmp_path / "m" / "tokenizer_notes.txt").write_text("mine")
    (tmp_path / "m" / "model-old").mkdir()
    run_language_model(settings(corpus, steps=1), tmp_path / "m", overwrite=True)
    assert (tmp_path / "m" / "tokenizer_notes.txt").read_text() == "mine"
    assert (tmp_path / "m" / "model-old").is_dir()


def test_a_step_over_several_passes_is_adamw_on_the_mean_over_all_their_tokens(tmp_path, corpus):
    """Four passes of 64 tokens against a plain loop over the same four."""
    options = {"batch_residues": 64, "step_residues": 256, "precision": "fp32", "optimizer": "adamw"}
    run_language_model(settings(corpus, **options, steps=1, learning_rate=0.01, weight_decay=0), tmp_path / "m")
    made = resolve("scratch:tiny-esm2", seed=0)
    task = LanguageModelTask(load_language_model(made))
    use_packing(task.plain)
    tokenizer = made.residue_tokenizer
    store = tokenise([Path(corpus)], tokenizer)
    train = Part(store, without=np.sort(hold_out(store, 0.05)))
    recipe = Recipe(OBJECTIVES["masked"], Symbols.of(made), 0.15, 64)
    batches = first(Stream(Crops(train, tokenizer, 64, 0), recipe), 4)
    count = sum(int((batch["labels"] != NOTHING).sum()) for batch in batches)
    loss = sum(task(**batch) for batch in batches) / count
    loss.backward()
    logged = json.loads((tmp_path / "m" / "history.jsonl").read_text().splitlines()[0])
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    trained = {name: each for name, each in task.plain.named_parameters() if each.grad is not None}
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    torch.optim.AdamW(trained.values(), lr=0.01 * 1.0, betas=(0.9, 0.98), weight_decay=0).step()
    found = weights(tmp_path / "m")
    assert all(torch.allclose(found[name], each, atol=1e-4) for name, each in trained.items() if name in found)


@pytest.mark.parametrize(
    ("model", "letters"),
    [("scratch:tiny-mistral-dna", "dna"), ("scratch:tiny-dna", "dna"), ("scratch:tiny-dnabert", "dna"),
     ("scratch:tiny-protgpt2", "protein"), ("scratch:tiny-prott5", "protein"), ("scratch:tiny-esmc", "protein")],
)  # fmt: skip
def test_every_objective_trains_and_its_result_is_a_model_to_fine_tune(tmp_path, model, letters):
    file = write(tmp_path / "s.fasta", dna(60) if letters == "dna" else proteins(80))
    metrics = run_language_model(settings(file, model=model, learning_rate=0.01, steps=25), tmp_path / "m")
    assert metrics["perplexity"]["after"]["held_out"] < metrics["perplexity"]["before"]["held_out"]
    found = resolve(str(tmp_path / "m"))
    assert found.family.name == resolve(model).family.name
    assert found.load_backbone() is not None
    if "t5" in model:
        assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m").config.is_encoder_decoder


@pytest.mark.parametrize(
    ("model", "layers"), [("tiny-esm2", ("dense", "query")), ("tiny-protgpt2", ("c_attn", "c_proj", "c_fc"))]
)
def test_without_biases_those_of_all_linear_layers_stay_zero(tmp_path, corpus, model, layers):
    run_language_model(settings(corpus, model=f"scratch:{model}", biases=False), tmp_path / "m")
    ends = tuple(f"{layer}.bias" for layer in layers)
    biases = {name: each for name, each in weights(tmp_path / "m").items() if name.endswith(ends)}
    assert biases
    assert not any(each.any() for each in biases.values())


def test_a_model_goes_on_with_biases_or_without_as_it_began(tmp_path, corpus):
    for name, biases in (("with", True), ("without", False)):
        run_language_model(settings(corpus, biases=biases), tmp_path / name)
        run_language_model(settings(corpus, model=str(tmp_path / name)), tmp_path / f"{name}-further")
        found = [each for key, each in weights(tmp_path / f"{name}-further").items() if key.endswith("dense.bias")]
        assert any(each.any() for each in found) == biases
    with pytest.raises(PlftError, match="has learned with biases"):
        run_language_model(settings(corpus, model=str(tmp_path / "with"), biases=False), tmp_path / "refused")


def test_set_has_the_last_word(tmp_path, corpus):
    words = ["--steps", "1", "--crop", "32", "--batch-residues", "64"]
    more = ["--set", "biases=false", "--set", "held_out_share=0"]
    made = plft("pretrain", corpus, "--arch", "tiny-esm2", *words, *more, "--out", str(tmp_path / "m"))
    assert made.code == 0, made.err
    assert "1 steps" in made.out + made.err
    assert "before" not in made.out + made.err  # no table of perplexities where nothing is held out
    assert "## Perplexity" not in (tmp_path / "m" / "README.md").read_text()
    assert "biases: false" in (tmp_path / "m" / "pretraining.yaml").read_text()
    lora = ["--method", "lora", "--set", "keep_adapter=true"]
    made = plft("adapt", corpus, "--model", str(tmp_path / "m"), *words, *lora, "--out", str(tmp_path / "adapted"))
    assert made.code == 0, made.err
    assert (tmp_path / "adapted" / "adapter").is_dir()
    refused = plft("pretrain", corpus, "--minutes", "1", "--set", "batch_residues=abc", "--out", str(tmp_path / "no"))
    assert refused.code == 1
    assert "batch_residues" in refused.err.lower()


def test_a_corpus_of_one_short_sequence_trains_without_a_held_out_part(tmp_path):
    file = write(tmp_path / "one.fasta", [MOTIF])
    metrics = run_language_model(settings(file, steps=2), tmp_path / "m")
    assert metrics["perplexity"]["after"] == {}
    assert "Nothing was held out" in (tmp_path / "m" / "README.md").read_text()


def test_sequences_marked_as_test_are_not_learned_and_that_is_said(tmp_path):
    rows = [f"{sequence},{'test' if at % 4 else 'train'}" for at, sequence in enumerate(proteins(40))]
    (tmp_path / "a.csv").write_text("\n".join(["sequence,split", *rows]))
    said: list[str] = []
    metrics = run_language_model(settings(str(tmp_path / "a.csv"), steps=1), tmp_path / "m", say=said.append)
    assert metrics["data"]["sequences"] == 10
    assert "30 sequences that the files mark as valid or test are left out" in said


@pytest.mark.parametrize("method", ["full", "lora"])
def test_adapting_lowers_the_familys_perplexity_and_measures_the_general_set(tmp_path, method):
    general = write(tmp_path / "general.fasta", ["ACDEFGHIKLMNPQRSTVWY" * 3, "WYWYWYWYACACACAC" * 3])
    base = tmp_path / "base"
    run_language_model(settings(general, steps=40, learning_rate=0.01, precision="fp32"), base)
    family = write(tmp_path / "family.fasta", proteins(100))
    config = settings(family, model=str(base), general=[general], method=method, steps=40, learning_rate=0.005,
                      keep_adapter=method == "lora", precision="fp32")  # fmt: skip
    metrics = run_language_model(config, tmp_path / "adapted")
    before, after = metrics["perplexity"]["before"], metrics["perplexity"]["after"]
    assert after["held_out"] < 0.95 * before["held_out"]
    assert set(after) == {"held_out", "general"}
    changed = {
        name for name, each in weights(tmp_path / "adapted").items() if not torch.equal(each, weights(base)[name])
    }
    only_attention = {name for name in changed if any(part in name for part in ("query", "key", "value"))}
    assert changed == only_attention if method == "lora" else len(changed) > len(only_attention)
    assert (tmp_path / "adapted" / "adapter" / "adapter_model.safetensors").exists() == (method == "lora")


def test_an_adapted_model_is_where_the_base_was_before_its_first_step(tmp_path, corpus):
    base = tmp_path / "base"
    made = run_language_model(settings(corpus, steps=5), base)
    metrics = run_language_model(settings(corpus, model=str(base), steps=1, learning_rate=1e-9), tmp_path / "again")
    assert metrics["perplexity"]["before"]["held_out"] == pytest.approx(
        made["perplexity"]["after"]["held_out"], rel=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "[Gg]ive one budget"),
        ({"minutes": 3}, "[Gg]ive one budget"),
        ({"rate": 1.5}, "Rate: input should be less than 1"),
        ({"method": "dora"}, "choose from full, lora"),
        ({"keep_adapter": True}, "[Kk]eep_adapter is for method lora"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(corpus, changes, message):
    with pytest.raises(PlftError, match=message) as caught:
        settings(corpus, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"both_strands": True}, "is for DNA"),
        ({"crop": 512, "batch_residues": 100}, "cannot hold a crop"),
        ({"files": ["absent.fasta"]}, "absent.fasta"),
        ({"valid": ["absent.fasta"]}, "absent.fasta"),
        ({"model": "scratch:esm2-0.2n"}, "Did you mean 'esm2-0.2m'"),
        ({"model": "scratch:dna-1m"}, "look like protein"),
        ({"report_to": "tensorbord"}, "Did you mean 'tensorboard'"),
        ({"model": "scratch:tiny-protgpt2", "rate": 0.3}, "--rate 0.3 has no effect"),
        ({"model": "scratch:tiny-prott5", "biases": False}, "linear layers of scratch:tiny-prott5 have none"),
        ({"method": "lora"}, "has learned none"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path, corpus, changes, message):
    with pytest.raises(PlftError, match=message) as caught:
        run_language_model(settings(corpus, **changes), tmp_path / "m")
    assert "\n" not in str(caught.value)


# -- what is held out --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_mmseqs() is None, reason="MMseqs2 is not installed")
def test_nothing_held_out_has_a_homolog_in_training_where_mmseqs_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("plft.language_preparation.find_mmseqs", find_mmseqs)
    random = np.random.default_rng(0)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    made = []
    for family in range(40):  # every second family has one member, the others three
        founder = random.choice(letters, 90)
        for _ in range(1 if family % 2 else 3):
            relative = founder.copy()
            relative[random.integers(0, 90, 8)] = random.choice(letters, 8)
            made.append((family, "".join(relative)))
    random.shuffle(made)
    family_of = {sequence: int(family) for family, sequence in made}
    file = write(tmp_path / "families.fasta", list(family_of))
    said: list[str] = []
    metrics = run_language_model(settings(file, steps=1, held_out_share=0.1), tmp_path / "m", say=said.append)
    assert "clean" in metrics["perplexity"]["after"]
    assert any("none with a homolog in the rest" in sentence for sentence in said)
    kept = set(json.loads((tmp_path / "m" / "held_out.json").read_text())["entries"])
    assert kept
    sequences = list(family_of)  # entries lie in the order of the file
    trained = {family_of[sequences[entry]] for entry in range(len(sequences)) if entry not in kept}
    assert not trained & {family_of[sequences[entry]] for entry in kept}


def test_what_goes_back_to_training_takes_its_relatives_along(tmp_path, monkeypatch):
    """s0 is related to training; s1 to s0 alone; s2 to s1 alone: all three have to be learned from."""
    sequences = [f"{letter * 30}MKTAY" for letter in "ACDEFGHIKLMNPQRSTV"]
    file = write(tmp_path / "chain.fasta", sequences)
    checkpoint = resolve("scratch:tiny-esm2")
    store = tokenise([Path(file)], checkpoint.residue_tokenizer)
    candidates = hold_out(store, 0.5, seed=0).tolist()
    chain = [sequences[entry] for entry in candidates[:3]]

    def related(queries, rest, *_):
        there = {record.sequence for record in read_records(rest, labelled=False)}
        targets = dict(zip(chain, [there - set(chain), {chain[0]}, {chain[1]}], strict=True))
        return np.array([bool(targets.get(query, set()) & there) for query in queries])

    monkeypatch.setattr("plft.language_preparation.homologous_queries", related)
    monkeypatch.setattr("plft.language_preparation.find_mmseqs", lambda: Path("mmseqs"))
    run_language_model(settings(file, steps=1, held_out_share=0.5, crop=16), tmp_path / "m")
    kept = json.loads((tmp_path / "m" / "held_out.json").read_text())
    assert kept["clean"]
    assert kept["entries"] == candidates[3:]


def test_a_resumed_run_is_measured_on_as_much_as_it_began_with(tmp_path, corpus):
    prepared = prepare(settings(corpus, steps=None, minutes=0.5), tmp_path / "m", quiet, time.monotonic(), False)
    begun = replace(prepared, choices=replace(prepared.choices, look=4321))
    assert (affordable_look(prepared)[0] == 4321, affordable_look(begun)[0]) == (False, 4321)


def test_a_resumed_run_holds_out_what_it_began_with(tmp_path, corpus, monkeypatch):
    config = settings(corpus, save_steps=3)
    with pytest.raises(KeyboardInterrupt):
        run_language_model(config, tmp_path / "m", callbacks=[StopAt(4)])
    kept = (tmp_path / "m" / "held_out.json").read_bytes()
    monkeypatch.setattr("plft.language_preparation.hold_out", None)  # not asked again
    run_language_model(config, tmp_path / "m", resume=True)
    assert (tmp_path / "m" / "held_out.json").read_bytes() == kept


@pytest.mark.slow
def test_two_processes_end_where_one_with_twice_the_accumulation_does(tmp_path, corpus):
    """Through the command line, with gloo on the CPU, as `accelerate launch` runs it."""
    common = ["--arch", "tiny-esm2", "--steps", "6", "--crop", "64", "--precision", "fp32"]
    common += ["--batch-residues", "256", "--step-residues", "1024"]
    script = Path(sys.executable).with_name("plft")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for out, command in (("one", [str(script)]), ("two", launch)):
        words = [*command, "pretrain", corpus, "--out", str(tmp_path / out), *common]
        subprocess.run(words, check=True, env=environment, capture_output=True, timeout=300)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_a_refused_overwrite_leaves_the_model_that_is_there(tmp_path, corpus):
    run_language_model(settings(corpus, steps=1), tmp_path / "m")
    before = {each.name: each.read_bytes() for each in (tmp_path / "m").iterdir() if each.is_file()}
    for changes in ({"files": ["absent.fasta"]}, {"model": str(tmp_path / "m")}):
        with pytest.raises(PlftError):
            run_language_model(settings(corpus, **changes), tmp_path / "m", overwrite=True)
    assert before == {each.name: each.read_bytes() for each in (tmp_path / "m").iterdir() if each.is_file()}


def test_a_folder_that_is_not_ours_is_never_overwritten(tmp_path, corpus):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(PlftError, match="plft did not make it"):
        run_language_model(settings(corpus), tmp_path / "project", overwrite=True)
    assert (tmp_path / "project" / "README.md").read_text() == "mine"


def test_a_run_is_not_resumed_on_other_data(tmp_path, corpus):
    config = settings(corpus, save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run_language_model(config, tmp_path / "m", callbacks=[StopAt(3)])
    write(Path(corpus), proteins(50, seed=9))
    with pytest.raises(PlftError, match="files have changed"):
        run_language_model(config, tmp_path / "m", resume=True)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path, corpus, method):
    base = tmp_path / "base"
    run_language_model(settings(corpus, steps=1), base)
    for name, on in (("plain", False), ("saving", True)):
        config = settings(corpus, model=str(base), method=method, gradient_checkpointing=on, steps=3)
        run_language_model(config, tmp_path / name)
    plain, saving = weights(tmp_path / "plain"), weights(tmp_path / "saving")
    assert all(torch.allclose(plain[name], saving[name], atol=1e-6) for name in plain)


def test_a_budget_in_minutes_ends_in_time_and_can_be_resumed(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("plft.language_run.SAVING", 1)
    config = settings(corpus, steps=None, minutes=0.2, step_residues=256)
    with pytest.raises(KeyboardInterrupt):
        run_language_model(config, tmp_path / "m", callbacks=[StopAt(3)])
    metrics = run_language_model(config, tmp_path / "m", resume=True)
    assert metrics["steps"] > 3
    assert metrics["choices"]["look"] > 0
    assert metrics["minutes"] < 0.4  # twice the budget: a busy machine may be slow to save
