"""What each model family expects: how a sequence is spelled for it, its limits, and the names of its parts.

A family is a row of :data:`FAMILIES`; anything that differs between families is a field of that row. Nothing here
imports torch or transformers: a model's configuration is any object with the usual attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
NUCLEOTIDES = "ACGT"
_AMBIGUOUS_BASES = "UNRYSWKMBDHV"  # IUPAC

Spelling = Literal["plain", "spaced", "kmers", "lines", "chunks"]
Vocabulary = Literal["residues", "nucleotides", "marked", "3di", "kmers", "dna pieces", "protein pieces", "other"]
Positions = Literal["free", "absolute", "after padding"]


@dataclass(frozen=True)
class Family:
    """What holds for every checkpoint of one model family.

    model_types, vocabularies: how a checkpoint is recognised: `model_type` of its configuration, kind of vocabulary.
    positions: how tokens are numbered, which says where the hard limit on tokens comes from.
    spelling: `plain` (MKT), `spaced` (M K T), `kmers` (overlapping words), `lines` (60 residues a line), `chunks`
    (single letters, looked up one by one). prefix: text put before the sequence. letters_to_unknown: read as X.
    n_special: special tokens around a sequence. max_tokens: hard limit with special tokens, None when there is none.
    trained_residues: how many residues the model saw at a time, the default window.
    lora_targets, ia3_targets, ia3_feedforward: suffixes of module names; empty means every linear layer of the blocks.
    blocks: dotted path of the transformer blocks inside the backbone; empty means it has to be looked for.
    remote_code: the weights only make sense with code from the checkpoint's own repository.
    """

    name: str
    title: str
    alphabet: Literal["protein", "dna"]
    model_types: tuple[str, ...]
    vocabularies: tuple[Vocabulary, ...]
    lora_targets: tuple[str, ...]
    ia3_targets: tuple[str, ...]
    ia3_feedforward: tuple[str, ...]
    blocks: str
    trained_residues: int
    spelling: Spelling = "plain"
    kmer: int | None = None
    prefix: str = ""
    letters_to_unknown: str = ""
    n_special: int = 2
    positions: Positions = "free"
    max_tokens: int | None = None
    objective: Literal["masked", "causal", "span"] = "masked"
    fp16: bool = True
    remote_code: bool = False
    note: str = ""

    @property
    def causal(self) -> bool:
        """True when a token sees only the tokens before it."""
        return self.objective == "causal"

    @property
    def is_known(self) -> bool:
        """False for the safe defaults given to a model that no row describes."""
        return self.name != GENERIC


GENERIC = "generic"
_BERT_PARTS = {
    "lora_targets": ("query", "key", "value"),
    "ia3_targets": ("key", "value", "output.dense"),
    "ia3_feedforward": ("output.dense",),
    "blocks": "encoder.layer",
}
_T5_PARTS = {
    "lora_targets": ("q", "k", "v", "o"),
    "ia3_targets": ("k", "v", "wo"),
    "ia3_feedforward": ("wo",),
    "blocks": "encoder.block",
    "n_special": 1,
    "objective": "span",
    "fp16": False,  # activations of T5 overflow in fp16 and turn into NaN
}
_LLAMA_PARTS = {
    "lora_targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "ia3_targets": ("k_proj", "v_proj"),
    "ia3_feedforward": (),
    "blocks": "layers",
}


def _row(parts: Mapping[str, Any], **fields: Any) -> Family:
    return Family(**{**parts, **fields})


_ROWS = (
    _row(
        _BERT_PARTS,
        name="esm2",
        title="ESM-2",
        alphabet="protein",
        model_types=("esm",),
        vocabularies=("residues",),
        trained_residues=1022,  # 1024 tokens minus <cls> and <eos>
        note="rotary positions: longer sequences run, but were not seen in pretraining",
    ),
    _row(
        _BERT_PARTS,
        name="esm1b",
        title="ESM-1b and ESM-1v",
        alphabet="protein",
        model_types=("esm",),
        vocabularies=("residues",),
        positions="after padding",
        max_tokens=1024,
        trained_residues=1022,
    ),
    _row(
        _LLAMA_PARTS,
        name="esmc",
        title="ESM C",
        alphabet="protein",
        model_types=("esmc",),
        vocabularies=("residues",),
        ia3_targets=("k_proj", "v_proj", "down_proj"),
        ia3_feedforward=("down_proj",),
        trained_residues=2046,
    ),
    _row(
        _BERT_PARTS,
        name="protbert",
        title="ProtBert and ProtBert-BFD",
        alphabet="protein",
        model_types=("bert",),
        vocabularies=("residues",),
        spelling="spaced",
        letters_to_unknown="UZOB",
        positions="absolute",
        trained_residues=2046,
    ),
    _row(
        _T5_PARTS,
        name="prostt5",
        title="ProstT5 (encoder)",
        alphabet="protein",
        model_types=("t5",),
        vocabularies=("3di",),
        spelling="spaced",
        prefix="<AA2fold> ",
        letters_to_unknown="UZOB",
        n_special=2,
        trained_residues=1024,
    ),
    _row(
        _T5_PARTS,
        name="prott5",
        title="ProtT5 (encoder)",
        alphabet="protein",
        model_types=("t5",),
        vocabularies=("marked",),
        spelling="spaced",
        letters_to_unknown="UZOB",
        trained_residues=1024,  # trained at 512, relative positions carry further
    ),
    _row(
        _T5_PARTS,
        name="ankh",
        title="Ankh (encoder)",
        alphabet="protein",
        model_types=("t5",),
        vocabularies=("residues",),
        spelling="chunks",
        trained_residues=1024,
    ),
    _row(
        _LLAMA_PARTS,
        name="protgpt2",
        title="ProtGPT2",
        alphabet="protein",
        model_types=("gpt2",),
        vocabularies=("protein pieces",),
        lora_targets=("c_attn",),
        ia3_targets=("c_attn", "mlp.c_proj"),
        ia3_feedforward=("mlp.c_proj",),
        blocks="h",
        spelling="lines",
        prefix="<|endoftext|>\n",
        positions="absolute",
        objective="causal",
        trained_residues=2000,
    ),
    _row(
        _LLAMA_PARTS,
        name="mistral-dna",
        title="Mistral-DNA",
        alphabet="dna",
        model_types=("mixtral", "mistral", "llama"),
        vocabularies=("dna pieces",),
        objective="causal",
        trained_residues=2000,  # 512 tokens of about four letters
    ),
    _row(
        _BERT_PARTS,
        name="esm-dna",
        title="ESM-2 shape over DNA letters",
        alphabet="dna",
        model_types=("esm",),
        vocabularies=("nucleotides",),
        positions="after padding",  # a limit only where a checkpoint numbers its positions absolutely
        trained_residues=1022,  # 1024 tokens minus <cls> and <eos>, as ESM-2
        note="rotary positions: longer sequences run, but were not seen in pretraining",
    ),
    _row(
        _BERT_PARTS,
        name="nucleotide-transformer",
        title="Nucleotide Transformer",
        alphabet="dna",
        model_types=("esm",),
        vocabularies=("kmers",),
        kmer=6,
        n_special=1,
        positions="after padding",
        max_tokens=1000,
        trained_residues=5994,  # 999 6-mers
    ),
    _row(
        _BERT_PARTS,
        name="dnabert",
        title="DNABERT",
        alphabet="dna",
        model_types=("bert",),
        vocabularies=("kmers",),
        spelling="kmers",
        kmer=6,
        positions="absolute",
        max_tokens=512,
        trained_residues=515,
    ),
    _row(
        _BERT_PARTS,
        name="dnabert2",
        title="DNABERT-2",
        alphabet="dna",
        model_types=("bert",),
        vocabularies=("dna pieces",),
        lora_targets=("Wqkv", "dense"),
        ia3_targets=("Wqkv", "wo"),
        ia3_feedforward=("wo",),
        remote_code=True,
        trained_residues=2000,
        note="its Triton attention breaks on newer Triton; uninstall triton or use the padded path if it fails",
    ),
    _row(
        _BERT_PARTS,
        name="gena-lm",
        title="GENA-LM",
        alphabet="dna",
        model_types=("bert", "big_bird"),
        vocabularies=("dna pieces",),
        positions="absolute",
        max_tokens=512,
        remote_code=True,
        trained_residues=3000,  # 512 tokens of about nine letters, less a margin for poorly packed repeats
    ),
    Family(
        name=GENERIC,
        title="Unknown family",
        alphabet="protein",
        model_types=(),
        vocabularies=(),
        lora_targets=(),
        ia3_targets=(),
        ia3_feedforward=(),
        blocks="",
        trained_residues=510,
        positions="absolute",
        fp16=False,
        note="no row of the family table describes this model, so safe defaults are used: check spelling and limits",
    ),
)
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


# -- recognition -------------------------------------------------------------------------------------------------------


def recognise(config: Any, vocab: Mapping[str, int], name: str = "") -> Family:
    """Return the family of a checkpoint, with the facts its configuration and vocabulary state filled in.

    config: anything with `model_type` and the attributes of a transformers configuration.  vocab: token -> id.
    name: what the user called the checkpoint; it only decides between rows that nothing else tells apart.
    A checkpoint that no row describes gets the row `generic`, whose `note` says so.
    """
    kind = kind_of_vocabulary(vocab)
    model_type = getattr(config, "model_type", "")
    rows = [row for row in _ROWS if model_type in row.model_types and kind in row.vocabularies]
    family = _choose(rows, config, vocab, name) if rows else _generic(config, vocab, kind)
    return _with_facts(family, config, vocab)


def kind_of_vocabulary(vocab: Iterable[str]) -> Vocabulary:
    """Say what the tokens of a vocabulary are: amino acids, nucleotides, k-mers, longer pieces of either, or other."""
    tokens = set(vocab)
    if "<AA2fold>" in tokens:
        return "3di"
    if kmer_length(tokens):
        return "kmers"
    if len(tokens) < 300 and all("▁" + letter in tokens for letter in AMINO_ACIDS):
        return "marked"
    if len(tokens) < 300 and tokens.issuperset(AMINO_ACIDS):
        return "residues"
    if _is_nucleotides(tokens):
        return "nucleotides"
    words = [token for token in tokens if len(token) > 1 and token.isalpha()]
    if len(words) * 2 > len(tokens) and _share(words, NUCLEOTIDES + "N") > 0.9:
        return "dna pieces"
    # tiny vocabularies of letters and a few merges count too, hence no minimum length
    if tokens.issuperset(AMINO_ACIDS) and _share(words, AMINO_ACIDS + "XBZUO") > 0.8:
        return "protein pieces"
    return "other"


def _is_nucleotides(tokens: set[str]) -> bool:
    """True for A, C, G, T and at most the letters of ambiguous bases, with no longer words of them."""
    letters = {token for token in tokens if len(token) == 1 and token.isalpha()}
    longer = any(len(token) > 1 and set(token) <= set(NUCLEOTIDES) for token in tokens)
    return letters.issuperset(NUCLEOTIDES) and letters <= set(NUCLEOTIDES + _AMBIGUOUS_BASES) and not longer


def kmer_length(vocab: Iterable[str]) -> int | None:
    """Return k when the longest nucleotide words of a vocabulary are all the 4**k words of k > 2 letters."""
    words = [token for token in vocab if len(token) > 2 and set(token) <= set(NUCLEOTIDES)]
    longest = max(map(len, words), default=0)
    complete = longest > 2 and sum(len(word) == longest for word in words) == 4**longest
    return longest if complete else None


def _share(words: list[str], letters: str) -> float:
    return sum(set(word) <= set(letters) for word in words) / max(len(words), 1)


def _choose(rows: list[Family], config: Any, vocab: Mapping[str, int], name: str) -> Family:
    """Pick among rows that share model type and vocabulary: by positions, size of the vocabulary, or the name."""
    if rows[0].name == "esm2":
        rotary = getattr(config, "position_embedding_type", "absolute") == "rotary"
        return FAMILIES["esm2" if rotary else "esm1b"]
    if rows[0].name == "dnabert2":  # 4096 pieces; GENA-LM has 32000
        return FAMILIES["gena-lm" if len(vocab) > 8192 or "gena" in name.lower() else "dnabert2"]
    return rows[0]


_DECODERS = {
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "opt",
    "bloom",
    "phi",
}


def _generic(config: Any, vocab: Mapping[str, int], kind: Vocabulary) -> Family:
    """Safe defaults for an unknown model: only what can be read off its configuration and vocabulary."""
    is_dna = kind in ("nucleotides", "kmers", "dna pieces")
    is_causal = bool(getattr(config, "is_decoder", False)) or getattr(config, "model_type", "") in _DECODERS
    return replace(
        FAMILIES[GENERIC],
        alphabet="dna" if is_dna else "protein",
        spelling="spaced" if kind in ("marked", "3di") or ("[CLS]" in vocab and kind == "residues") else "plain",
        letters_to_unknown="".join(letter for letter in "BJOUZ" if letter not in vocab) if "X" in vocab else "",
        objective="causal" if is_causal else "masked",
    )


def _with_facts(family: Family, config: Any, vocab: Mapping[str, int]) -> Family:
    """Replace the row's k and limits by what this checkpoint states."""
    limit = _position_limit(family, config)
    kmer = kmer_length(vocab) if family.kmer else None
    fitting = residues_that_fit(replace(family, kmer=kmer, max_tokens=limit))
    trained = min(family.trained_residues, fitting) if fitting else family.trained_residues
    if family.kmer and fitting:  # written in letters for 6-mers; another k or length moves it
        trained = fitting
    return replace(family, kmer=kmer, max_tokens=limit, trained_residues=trained)


def _position_limit(family: Family, config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "position_embedding_type", "absolute") == "rotary"
    if family.positions == "free" or rotary:
        return None
    if positions is None:
        return family.max_tokens
    if family.positions == "after padding":  # ESM counts positions from the padding id + 1
        return int(positions) - int(getattr(config, "pad_token_id", None) or 0) - 1
    return int(positions)


def residues_that_fit(family: Family) -> int | None:
    """Residues whose tokens fill max_tokens; None without a limit or when tokens have no fixed length."""
    if family.max_tokens is None or family.spelling == "lines":
        return None
    tokens = family.max_tokens - family.n_special
    if family.spelling == "kmers":
        return tokens + (family.kmer or 1) - 1
    return tokens * (family.kmer or 1) if family.vocabularies != ("dna pieces",) else None


# -- spelling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spelled:
    """A sequence as text for a tokenizer.

    text: what the tokenizer reads.  residue_of_char: (characters,) int32, the residue that each character of the text
    stands for, counted from 0; -1 for spaces, line breaks and the prefix.
    """

    text: str
    residue_of_char: np.ndarray


_LINE = 60  # residues per line in the FASTA files that ProtGPT2 was trained on


def _plain(sequence: str, family: Family) -> tuple[str, np.ndarray]:
    return sequence, np.arange(len(sequence), dtype=np.int32)


def _spaced(sequence: str, family: Family) -> tuple[str, np.ndarray]:
    residues = np.full(max(2 * len(sequence) - 1, 0), -1, dtype=np.int32)
    residues[::2] = np.arange(len(sequence), dtype=np.int32)
    return " ".join(sequence), residues


def _kmers(sequence: str, family: Family) -> tuple[str, np.ndarray]:
    """Overlapping words of k letters; a sequence shorter than k is one shorter word."""
    k = min(family.kmer or 1, len(sequence))
    starts = np.arange(len(sequence) - k + 1, dtype=np.int32)
    residues = np.full((len(starts), k + 1), -1, dtype=np.int32)
    residues[:, :k] = starts[:, None] + np.arange(k, dtype=np.int32)
    return " ".join(sequence[i : i + k] for i in starts), residues.reshape(-1)[:-1]


def _lines(sequence: str, family: Family) -> tuple[str, np.ndarray]:
    text = "\n".join(sequence[i : i + _LINE] for i in range(0, len(sequence), _LINE))
    chars = np.arange(len(text), dtype=np.int32)
    row, column = np.divmod(chars, _LINE + 1)
    return text, np.where(column == _LINE, -1, row * _LINE + column).astype(np.int32)


SPELLINGS: dict[str, Callable[[str, Family], tuple[str, np.ndarray]]] = {
    "plain": _plain,
    "chunks": _plain,
    "spaced": _spaced,
    "kmers": _kmers,
    "lines": _lines,
}


def spell(family: Family, sequence: str) -> Spelled:
    """Spell a sequence the way a family's tokenizer expects it, remembering which residue every character is.

    Letters become upper case; the family's `letters_to_unknown` become X. The residues keep their number and order.

    >>> spell(FAMILIES["prott5"], "MUT").text
    'M X T'
    >>> spell(FAMILIES["prott5"], "MUT").residue_of_char.tolist()
    [0, -1, 1, -1, 2]
    """
    letters = sequence.upper().translate(dict.fromkeys(map(ord, family.letters_to_unknown), "X"))
    text, residues = SPELLINGS[family.spelling](letters, family)
    before = np.full(len(family.prefix), -1, dtype=np.int32)
    return Spelled(family.prefix + text, np.concatenate([before, residues]))
