"""The pretrained models inside the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from plft import perplexity
from plft.apps.demonstration import EXAMPLES
from plft.checkpoints import BUILTIN, resolve

MOST_BYTES = {"protein": 12_000_000, "dna": 6_000_000}
# the first bases of phage lambda and of the lacZ gene of E. coli, as everybody who sequences knows them
GENES = [
    "GGGCGGCGACCTCGCGGGTTTTCGCTATTTATGAAAATTTTCCGGTTTAAGGCGTTTCCGTTCTTCTTCGTCATAACTTAATGTTTTTATTTAAAATACCCTCTGAAAAGAAAGGAAACG",
    "ATGACCATGATTACGGATTCACTGGCCGTCGTTTTACAACGTCGTGACTGGGAAAACCCTGGCGTTACCCAACTTAATCGCCTTGCAGCACATCCCCCTTTCGCCAGCTGGCGTAATAGC",
]


@pytest.fixture(params=sorted(BUILTIN))
def name(request) -> str:
    return request.param


def test_it_is_small_enough_to_ship_and_its_card_says_what_it_was_made_from(name):
    folder = resolve(f"builtin:{name}").folder
    assert sum(file.stat().st_size for file in Path(folder).iterdir()) < MOST_BYTES[name]
    metrics, card = (
        json.loads((folder / "metrics.json").read_text()),
        (folder / "README.md").read_text().replace("\\", ""),
    )
    for file, digest in metrics["data"]["files"].items():
        assert file in card
        assert digest in card
    assert f"{metrics['tokens']:,}" in card
    assert metrics["hardware"].split(",")[0] in card
    assert "not good for" in card


def test_transformers_loads_it_without_our_help(name):
    folder = resolve(f"builtin:{name}").folder
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("ACGTACGT", return_tensors="pt")).logits
    assert logits.shape[:2] == (1, 10)
    assert torch.isfinite(logits).all()


def test_the_same_shape_with_random_weights(name):
    pretrained, config = resolve(f"builtin:{name}"), resolve(f"builtin:{name}").config
    shape = f"esm2-{config.num_hidden_layers}x{config.hidden_size}x{config.num_attention_heads}"
    spelled_out = shape if name == "protein" else "dna-1m"
    scratch, expected = (resolve(f"scratch:{each}", seed=3) for each in (f"builtin:{name}", spelled_out))
    assert scratch.family.name == expected.family.name == pretrained.family.name
    assert scratch.tokenizer.get_vocab() == pretrained.tokenizer.get_vocab()
    assert scratch.is_scratch
    assert scratch.sha256 is None
    weights = [found.load_backbone().state_dict() for found in (scratch, expected)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(each, weights[1][key]) for key, each in weights[0].items())


def test_the_shape_of_a_folder_with_random_weights(name):
    folder = resolve(f"builtin:{name}").folder
    loaded, scratch = (resolve(each).load_backbone() for each in (str(folder), f"scratch:{folder}"))
    matrices = [found.encoder.layer[0].attention.self.query.weight for found in (loaded, scratch)]
    assert matrices[0].shape == matrices[1].shape
    assert not torch.allclose(*matrices)
    assert float(matrices[1].detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("name", "natural"), [("protein", list(EXAMPLES.values())), ("dna", GENES)])
def test_it_finds_natural_sequences_likelier_than_the_same_letters_shuffled(name, natural):
    random = np.random.default_rng(0)
    shuffled = ["".join(random.permutation(list(sequence))) for sequence in natural]
    before, after = (
        perplexity.total(perplexity.score(f"builtin:{name}", each, method="exact")).perplexity
        for each in (natural, shuffled)
    )
    assert before < after
