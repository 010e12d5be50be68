"""The benchmark suite runs: every job with every contender, on a tiny model; no time is asserted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM

from plft.homology import find_mmseqs
from scripts import load_script

SPEED = load_script("benchmarks/speed.py")
CURVES = load_script("benchmarks/loss_curves.py")
BUILTIN = load_script("benchmarks/builtin_models.py")
JOBS = ("full", "lora", "head", "last", "predict", "embed")


def test_every_job_is_tried_here():
    assert tuple(SPEED.CASES) == JOBS


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("lengths", ["natural", "dna"])
def test_each_contender_does_the_job(tmp_path, monkeypatch, job, lengths):
    monkeypatch.setenv("PLFT_CACHE", str(tmp_path))
    monkeypatch.setattr(SPEED, "BATCH", 2)
    for contender in ("plft", *SPEED.CASES[job].contenders):
        if lengths == "dna" and contender == "products":
            continue  # Mixtral's experts are not counted
        model = "scratch:tiny-esm2" if lengths == "natural" else "scratch:tiny-dnabert"
        found = SPEED.measure(job, lengths, contender, 6, model)
        assert found["speed"] > 0
        assert found["mb"] > 0


def test_packed_and_padded_training_follow_the_same_curve(monkeypatch):
    monkeypatch.setattr(CURVES, "BUDGET", 500)
    records = SPEED.simulated(SPEED.LENGTHS["natural"], 12)
    packed, padded = (CURVES.curve("scratch:tiny-esm2", records, 8, packed=packed) for packed in (True, False))
    assert len(set(packed)) == 8  # it learns, batch after batch
    assert packed == pytest.approx(padded, rel=1e-4)


@torch.no_grad()
def test_smaller_weights_leave_the_function_as_it_is():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary", **shape)
    model = EsmForMaskedLM(config).eval()
    for weight in model.parameters():  # as large as after training, norms and biases too
        weight.add_(torch.randn_like(weight))
    tokens = torch.randint(4, 24, (3, 20))
    before, embeddings = model(tokens).logits, model.esm.embeddings.word_embeddings.weight.clone()
    after = BUILTIN.shrunk(model, 2.5)(tokens).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    torch.testing.assert_close(model.esm.embeddings.word_embeddings.weight, embeddings / 2.5)


@pytest.mark.slow
@pytest.mark.skipif(find_mmseqs() is None, reason="families are found with MMseqs2")
def test_few_sequences_of_each_family_are_kept_and_all_without_one(tmp_path):
    random = np.random.default_rng(0)
    founders = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 120)) for _ in range(6)]
    family = [founders[0][:at] + "A" + founders[0][at + 1 :] for at in range(0, 60, 10)]
    file = tmp_path / "all.fasta"
    file.write_text("".join(f">s{at}\n{each}\n" for at, each in enumerate([*founders, *family])))
    few = BUILTIN.few_of_each_family([file], 2, 0, tmp_path / "work").read_text()
    kept = few.splitlines()[1::2]
    assert set(founders[1:]) <= set(kept)
    assert len(kept) == 7
    assert BUILTIN.few_of_each_family([file], 2, 0, tmp_path / "again").read_text() == few
