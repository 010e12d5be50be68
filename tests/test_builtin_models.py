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
from plft.checkpoints import BUILTIN, builtin_shape, resolve

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


def test_it_is_a_backbone_of_the_shape_it_names(name):
    pretrained, scratch = resolve(f"builtin:{name}"), resolve(builtin_shape(name))
    assert pretrained.family.name == scratch.family.name
    shapes = [
        {key: each.shape for key, each in found.load_backbone().state_dict().items()} for found in (pretrained, scratch)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("name", "natural"), [("protein", list(EXAMPLES.values())), ("dna", GENES)])
def test_it_finds_natural_sequences_likelier_than_the_same_letters_shuffled(name, natural):
    random = np.random.default_rng(0)
    shuffled = ["".join(random.permutation(list(sequence))) for sequence in natural]
    before, after = (
        perplexity.total(perplexity.score(f"builtin:{name}", each, method="exact")).perplexity
        for each in (natural, shuffled)
    )
    assert before < after
