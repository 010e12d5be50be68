"""Tokenizers of every family, built offline with the published symbols in the published order.

They are instances of the same tokenizer classes that published checkpoints load with, so that a scratch model and a
downloaded one go through the same code; but for ESM-2's, which is a fast one here, with the same tokens for the letters
it knows. The two that learn their pieces (byte-pair encoding) are trained on the spot.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    EsmcTokenizer,
    EsmTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)

from plft.alphabet import DNA, PROTEIN, Alphabet, clean
from plft.errors import look_up
from plft.families import AMINO_ACIDS, NUCLEOTIDES

_ESM = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
_ESM_DNA = ["<cls>", "<pad>", "<eos>", "<unk>", *NUCLEOTIDES, "N", "<mask>"]
_PROTBERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]
_T5_SPECIAL = ["<pad>", "</s>", "<unk>"]
_T5_LETTERS = "ALGVSREDTIPKFQNYMHWCXBOUZ"
_FOLD_LETTERS = "acdefghiklmnpqrstvwy"  # Foldseek's 3Di alphabet, lower case in ProstT5
_ANKH_SENTINELS = 116  # 3 + 25 letters + 116 = the 144 rows of the published embedding
_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_MISTRAL_SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]  # [PAD] = 3
_END = "<|endoftext|>"

_TRAINING_LETTERS = 2_000_000  # enough for a few thousand pieces; keeps the training of a tokenizer within seconds
_STRETCH = 10_000  # letters handed over together: a chromosome is not one word
_LONGEST_PIECE = 16  # letters; without a limit a repeat in the data becomes one very long piece


def scratch_tokenizer(
    family: str, sequences: Iterable[str] | None = None, *, size: int = 4096, kmer: int = 6
) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a family without network.

    family: a name of :data:`TOKENIZERS`.  sequences: what byte-pair encodings are trained on; without them, uniformly
    random letters, which gives valid but uninformed pieces.  size: how many symbols a byte-pair encoding may have at
    most.  kmer: letters per word for families of k-mers.
    """
    build = look_up("scratch tokenizer", family, TOKENIZERS)
    return build(sequences=sequences, size=size, kmer=kmer)


def kmers(k: int) -> list[str]:
    """Return all 4**k words in the order of the published vocabularies (A, T, C, G)."""
    return ["".join(word) for word in itertools.product("ATCG", repeat=k)]


# -- one symbol per residue --------------------------------------------------------------------------------------------


def _esmc(**_: Any) -> PreTrainedTokenizerBase:
    return EsmcTokenizer()


def _bert_tokenizer(symbols: list[str]) -> PreTrainedTokenizerBase:
    return BertTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, do_lower_case=False)


def _protbert(**_: Any) -> PreTrainedTokenizerBase:
    return _bert_tokenizer(_PROTBERT)


def _prott5(**_: Any) -> PreTrainedTokenizerBase:
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(100))]
    pieces = [*_T5_SPECIAL, *("▁" + letter for letter in _T5_LETTERS), *sentinels]
    return T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=100)


def _prostt5(**_: Any) -> PreTrainedTokenizerBase:
    tokenizer = _prott5()
    tokenizer.add_tokens([*_FOLD_LETTERS, "<fold2AA>", "<AA2fold>"])
    return tokenizer


def _letters(symbols: list[str], template: str, **special: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer of single characters; spaces between them say nothing."""
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    single = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), single])
    tokenizer.post_processor = _template(template, ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _template(template: str, ids: dict[str, int]) -> processors.TemplateProcessing:
    special = [(symbol, ids[symbol]) for symbol in template.split() if symbol != "$A"]
    return processors.TemplateProcessing(single=template, special_tokens=special)


def _ankh(**_: Any) -> PreTrainedTokenizerBase:
    symbols = [*_T5_SPECIAL, *_T5_LETTERS, *(f"<extra_id_{i}>" for i in range(_ANKH_SENTINELS))]
    return _letters(symbols, "$A </s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _esm(**_: Any) -> PreTrainedTokenizerBase:
    return _esm_letters(_ESM)


def _esm_dna(**_: Any) -> PreTrainedTokenizerBase:
    return _esm_letters(_ESM_DNA)


def _esm_letters(symbols: list[str]) -> PreTrainedTokenizerBase:
    names = ("cls_token", "pad_token", "eos_token", "unk_token", "mask_token")
    special = dict(zip(names, [*symbols[:4], symbols[-1]], strict=True))
    return _letters(symbols, "<cls> $A <eos>", **special)


def _generic(**_: Any) -> PreTrainedTokenizerBase:
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, ("<pad>", "<unk>", "<s>", "</s>", "<mask>"), strict=True))
    return _letters([*special.values(), *AMINO_ACIDS, "X"], "<s> $A </s>", **special)


# -- k-mers ------------------------------------------------------------------------------------------------------------


def _nucleotide_transformer(kmer: int, **_: Any) -> PreTrainedTokenizerBase:
    symbols = ["<unk>", "<pad>", "<mask>", "<cls>", *kmers(kmer), *"ATCGN"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "vocab.txt")
        file.write_text("\n".join(symbols), encoding="utf-8")
        return EsmTokenizer(str(file), eos_token=None)


def _dnabert(kmer: int, **_: Any) -> PreTrainedTokenizerBase:
    return _bert_tokenizer([*_BERT_SPECIAL, *kmers(kmer)])


# -- pieces learned from data ------------------------------------------------------------------------------------------


def _mistral_dna(sequences: Iterable[str] | None, size: int, **_: Any) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _train(tokenizer, _corpus(sequences, DNA, NUCLEOTIDES), size, _MISTRAL_SPECIAL, list(NUCLEOTIDES + "N"))
    tokenizer.post_processor = _template("[CLS] $A [SEP]", tokenizer.get_vocab())
    names = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, _MISTRAL_SPECIAL, strict=True)))


def _protgpt2(sequences: Iterable[str] | None, size: int, **_: Any) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train(tokenizer, _corpus(sequences, PROTEIN, AMINO_ACIDS), size, [_END], pre_tokenizers.ByteLevel.alphabet())
    learned = json.loads(tokenizer.to_str())["model"]
    return GPT2Tokenizer(vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]])


def _train(tokenizer: Tokenizer, corpus: Iterator[str], size: int, special: list[str], alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=alphabet,
        max_token_length=_LONGEST_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)


def _corpus(sequences: Iterable[str] | None, alphabet: Alphabet, letters: str) -> Iterator[str]:
    """Yield stretches, spelled as the model reads them, until the letters needed for training are reached.

    Without sequences they are random ones of the letters.
    """
    n_letters = 0
    for sequence in _random_sequences(letters) if sequences is None else sequences:
        for start in range(0, len(sequence), _STRETCH):
            stretch = clean(sequence[start : start + _STRETCH].upper(), alphabet).sequence
            yield stretch
            n_letters += len(stretch)
            if n_letters >= _TRAINING_LETTERS:
                return


def _random_sequences(letters: str) -> Iterator[str]:
    rng = np.random.default_rng(0)
    yield from ("".join(rng.choice(list(letters), 300)) for _ in range(500))


TOKENIZERS: dict[str, Callable[..., PreTrainedTokenizerBase]] = {
    "esm2": _esm,
    "esm1b": _esm,
    "esmc": _esmc,
    "protbert": _protbert,
    "prott5": _prott5,
    "prostt5": _prostt5,
    "ankh": _ankh,
    "protgpt2": _protgpt2,
    "mistral-dna": _mistral_dna,
    "esm-dna": _esm_dna,
    "nucleotide-transformer": _nucleotide_transformer,
    "dnabert": _dnabert,
    "generic": _generic,
}
