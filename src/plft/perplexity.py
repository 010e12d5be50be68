"""How well a language model predicts sequences: perplexity and pseudo-perplexity, per sequence and in total."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plft.alphabet import ALPHABETS, check_alphabet, clean, tidy, unknown_letters
from plft.batching import INFERENCE_BUDGET
from plft.checkpoints import Checkpoint, resolve
from plft.errors import PlftError
from plft.families import Family
from plft.language_models import load_language_model
from plft.objectives import Symbols, check_symbols, perplexity
from plft.parallel import side_by_side, workers_for
from plft.prediction import CHUNK_RESIDUES, as_record, choose_device, chunks
from plft.records import Record
from plft.tables import Row, TableWriter
from plft.tokens import Encoded, ResidueTokenizer

EXACT_TOKENS = 2_000_000  # masked copies of up to this many tokens are worth running where no method is asked for
MOST_LOGITS = 2**26  # numbers that a batch may put out: 0.3 GB; a vocabulary of 50,257 gets smaller batches
FITTED_ON = 512  # tokens of the first chunk that are masked to fit the estimate from one pass
MOST_TRUST = 1e6
ESTIMATED = f"estimated from one pass per sequence, fitted to {FITTED_ON} masked tokens; --method exact masks all"

EachBatch = Callable[[int], Any]


@dataclass(frozen=True)
class LanguageModel:
    """A model with its language-model head, and the checkpoint that says how sequences are spelled for it."""

    model: Any
    checkpoint: Checkpoint

    @property
    def family(self) -> Family:
        """The family, whose objective decides what is measured."""
        return self.checkpoint.family

    @property
    def tokenizer(self) -> ResidueTokenizer:
        """The tokenizer, with the residues its tokens cover."""
        return self.checkpoint.residue_tokenizer

    @cached_property
    def symbols(self) -> Symbols:
        """The token ids that its objective works with; a PlftError where one is missing."""
        symbols = Symbols.of(self.checkpoint)
        check_symbols(self.checkpoint, symbols)
        return symbols

    @property
    def has_pieces(self) -> bool:
        """Whether a token is several residues of its own, so that perplexity per residue is another number."""
        return not self.tokenizer.is_letterwise and self.family.spelling != "kmers"


def load(model: str | Checkpoint | LanguageModel, trust_remote_code: bool = False) -> LanguageModel:
    """Load a model by name or checkpoint onto the best device there is, with the head of its own objective.

    Raises PlftError for what `resolve` and `load_language_model` refuse.
    """
    if isinstance(model, LanguageModel):
        return model
    checkpoint = resolve(model, trust_remote_code=trust_remote_code) if isinstance(model, str) else model
    loaded = load_language_model(checkpoint)
    choose_device(loaded)
    return LanguageModel(loaded.eval(), checkpoint)


# -- what comes out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How well one sequence is predicted.

    length: residues.  n_scored: tokens whose probability counts.  n_residues: residues in them.  nll: the sum of their
    negative log-probabilities, in nats.  n_cut: residues beyond the model's hard limit, which are not scored.
    """

    id: str
    length: int
    n_scored: int
    n_residues: int
    nll: float
    n_cut: int = 0
    n_unknown: int = 0
    method: str = "exact"

    @property
    def perplexity(self) -> float:
        """exp(nll / n_scored): per token. NaN where nothing was scored."""
        return perplexity(self.nll / self.n_scored) if self.n_scored else math.nan

    @property
    def perplexity_per_residue(self) -> float:
        """exp(nll / n_residues): what makes models with tokens of different length comparable."""
        return perplexity(self.nll / self.n_residues) if self.n_residues else math.nan


@dataclass(frozen=True)
class Total(Score):
    """All sequences together: sums, and how many sequences there were and were cut."""

    sequences: int = 0
    truncated: int = 0

    @property
    def sentences(self) -> list[str]:
        """What the user should know, as sentences."""
        found = [f"{self.sequences:,} sequences, {self.n_scored:,} tokens scored, method {self.method}"]
        found += [ESTIMATED] if self.method == "one-pass" else []
        if self.truncated:
            found += [
                f"{self.truncated:,} sequences are longer than the model can read and were scored from their first "
                f"part: {self.n_cut:,} of all {self.length:,} residues are left out"
            ]
        letters = f"{self.n_unknown:,} letters are not in the alphabet and were read as X or N"
        found += [letters] if self.n_unknown else []
        unscored = self.length - self.n_cut - self.n_residues
        return found + ([f"{unscored:,} residues are not scored: unknown, or nothing before them"] if unscored else [])

    def to_json(self) -> dict[str, Any]:
        """Plain values; a perplexity of nothing is None."""
        return {
            "method": self.method,
            "sequences": self.sequences,
            "truncated": self.truncated,
            "residues": self.length,
            "n_cut": self.n_cut,
            "n_unknown": self.n_unknown,
            "n_scored": self.n_scored,
            "nll": self.nll,
            "perplexity": _or_none(self.perplexity),
            "perplexity_per_residue": _or_none(self.perplexity_per_residue),
        }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def total(scores: Iterable[Score]) -> Total:
    """Add up scores: the total perplexity is exp(total nll / total n_scored), so long sequences count for more."""
    summed = Total("total", 0, 0, 0, 0.0)
    for each in scores:
        summed = replace(
            summed,
            length=summed.length + each.length,
            n_scored=summed.n_scored + each.n_scored,
            n_residues=summed.n_residues + each.n_residues,
            nll=summed.nll + each.nll,
            n_cut=summed.n_cut + each.n_cut,
            n_unknown=summed.n_unknown + each.n_unknown,
            method=each.method,
            sequences=summed.sequences + 1,
            truncated=summed.truncated + bool(each.n_cut),
        )
    return summed


# -- what the model is asked -------------------------------------------------------------------------------------------


Ask = Callable[["LanguageModel", int, Encoded, np.ndarray], Iterator["Question"]]


@dataclass(frozen=True)
class Question:
    """One input of the model, and where in its output which tokens' probabilities are read.

    sequence: which one of the chunk.  input_ids: (tokens,).  places, targets: (questions,).
    """

    sequence: int
    input_ids: np.ndarray
    places: np.ndarray
    targets: np.ndarray


def _as_it_is(language: LanguageModel, sequence: int, encoded: Encoded, scored: np.ndarray) -> Iterator[Question]:
    """The sequence itself, each token read at its own place."""
    yield Question(sequence, encoded.input_ids, scored, encoded.input_ids[scored])


def _given_those_before(
    language: LanguageModel, sequence: int, encoded: Encoded, scored: np.ndarray
) -> Iterator[Question]:
    """The sequence itself, each token read one place earlier; the very first has nothing before it."""
    preceded = scored[scored > 0]
    yield Question(sequence, encoded.input_ids, preceded - 1, encoded.input_ids[preceded])


def _each_masked(language: LanguageModel, sequence: int, encoded: Encoded, scored: np.ndarray) -> Iterator[Question]:
    """A copy per token with that token masked, and with it those that share a residue with it (overlapping k-mers)."""
    mask, asks_decoder = _stand_in(language), language.family.objective == "span"
    ids, spans = encoded.input_ids, encoded.spans
    for at in scored:
        copy = ids.copy()
        copy[(spans[:, 0] < spans[at, 1]) & (spans[:, 1] > spans[at, 0])] = mask
        # a decoder reads its start and the sentinel, and answers at the sentinel
        yield Question(sequence, copy, np.array([1 if asks_decoder else at]), ids[at : at + 1])


def _stand_in(language: LanguageModel) -> int:
    """The id of what stands for a hidden token: the mask, or the first sentinel."""
    symbols = language.symbols
    return int(symbols.sentinels[0] if language.family.objective == "span" else symbols.mask or 0)


@dataclass(frozen=True)
class Method:
    """A way to measure. ask: what the model is asked about a sequence.  sees: whether it sees what it is asked for."""

    ask: Ask
    sees: bool = False


METHODS: dict[str, dict[str, Method]] = {
    "masked": {"exact": Method(_each_masked), "one-pass": Method(_as_it_is, sees=True)},
    "causal": {"exact": Method(_given_those_before), "one-pass": Method(_given_those_before)},
    "span": {"exact": Method(_each_masked)},
}


def methods_of(family: Family) -> dict[str, Method]:
    """The methods a family can be scored with; overlapping k-mers give each other away, so only "exact" is left."""
    known = METHODS[family.objective]
    return {"exact": known["exact"]} if family.spelling == "kmers" else known


def choose_method(family: Family, wanted: str | None, records: Iterable[Record]) -> tuple[str, Iterator[Record]]:
    """Return the method, and the records again: the wanted one, else "exact" unless it would take long.

    Raises PlftError for a method that the family cannot be scored with.
    """
    known, records = methods_of(family), iter(records)
    if wanted is not None and wanted not in known:
        raise PlftError(f"{family.title} is not scored with method '{wanted}'. Methods for it: {', '.join(known)}.")
    if family.causal or len(known) == 1:
        return "exact", records
    if wanted is not None:
        return wanted, records
    first, tokens = [], 0.0
    for record in records:
        first.append(record)
        tokens += min(len(record.sequence) / (family.kmer or 1), family.max_tokens or math.inf) ** 2  # a copy per token
        if tokens > EXACT_TOKENS:
            return "one-pass", chain(first, records)
    return "exact", iter(first)


def masked_from_visible(log_visible: np.ndarray, trust: float) -> np.ndarray:
    """Log-probability of tokens had they been masked, from one forward pass that saw them.

    Masked pretraining also asks for tokens that it leaves as they are (a share a of the tokens) or replaces by a random
    one of K (a share b). A perfect model that sees x at such a place, and would give it probability p were it masked,
    answers by Bayes' rule

        q = p (a + b / K) / (a p + b / K),   so   p = q / (trust (1 - q) + 1)   with   trust = K a / b.

    With the usual shares, a = b = 0.1, a perfect model trusts what it sees K = 20 times. Real ones start at 0, where
    p = q, and take long to get there, so `fitted_trust` finds what this model does.

    log_visible: log q, any shape.  trust: from 0.
    Masked probabilities from one unmasked pass are the idea of Kantroo et al. 2024 (arXiv:2407.07265), who train a
    network on each model's embeddings for it, and of Gordon et al. 2024 (doi:10.1101/2024.10.03.616542), who undo the
    80/10/10 corruption; the formula and its fit are worked out here, because they need nothing but the model. ESM's
    rescaling of embeddings (`token_dropout`) needs no correction: its code counts the mask tokens it sees, here none.
    """
    return log_visible - np.log1p(trust * -np.expm1(log_visible))


def fitted_trust(log_visible: np.ndarray, log_masked: np.ndarray) -> float:
    """The trust with which tokens seen have the mean log-probability that they have masked; 0 where q is below p.

    log_visible, log_masked: (tokens,) of the same tokens.
    """
    low, high = 0.0, MOST_TRUST
    for _ in range(100):  # the mean falls as trust rises
        middle = (low + high) / 2
        too_likely = masked_from_visible(log_visible, middle).mean() > log_masked.mean()
        low, high = (middle, high) if too_likely else (low, middle)
    return low


# -- scoring -----------------------------------------------------------------------------------------------------------


def score(
    model: str | Checkpoint | LanguageModel,
    sequences: str | Iterable[str | Record],
    method: str | None = None,
    *,
    budget: int = INFERENCE_BUDGET,
) -> list[Score]:
    """Score sequences with a language model, in their order.

    Masked models: pseudo-perplexity (Salazar et al. 2020, doi:10.18653/v1/2020.acl-main.240), either "exact", each
    token masked in turn, or "one-pass", estimated by `masked_from_visible` with a fit to 512 masked tokens, so that a
    score depends a little on the sequences beside it; by default exact as long as that takes few passes. Causal models:
    perplexity of each token given those before it. Span models: each token replaced by a sentinel in turn, and asked
    from the decoder.
    Special tokens, unknown letters (X, N) and residues beyond a hard limit are not scored.
    budget: tokens per batch, padding included.  Raises PlftError for what cannot be scored.
    """
    given = [sequences] if isinstance(sequences, str) else sequences
    records = (as_record(each, number) for number, each in enumerate(given, start=1))
    return list(chain.from_iterable(stream(load(model), records, method, budget=budget)))


def stream(
    language: LanguageModel,
    records: Iterable[Record],
    method: str | None = None,
    *,
    budget: int = INFERENCE_BUDGET,
    each_batch: EachBatch | None = None,
) -> Iterator[list[Score]]:
    """Score records in order, a chunk of them in memory at a time; each_batch is told the inputs of every batch."""
    name, records = choose_method(language.family, method, records)
    trust: float | None = None if methods_of(language.family)[name].sees else 0.0
    for number, part in enumerate(chunks(records, CHUNK_RESIDUES)):
        if not number:
            check_alphabet((each.sequence for each in part), ALPHABETS[language.family.alphabet])
        chunk = _tokenised(language, part)
        with _evaluating(language.model):
            trust = _trust_of(language, chunk, budget) if trust is None else trust
            scores = _score_chunk(language, chunk, name, trust, budget, each_batch)
        yield scores


def write_scores(
    language: LanguageModel,
    records: Iterable[Record],
    path: str | Path | None = None,
    method: str | None = None,
    *,
    budget: int = INFERENCE_BUDGET,
    each_batch: EachBatch | None = None,
) -> Total:
    """Stream records through the model into a table (id, length, n_scored, nll, perplexity); returns the total."""
    found = stream(language, records, method, budget=budget, each_batch=each_batch)
    if path is None:
        return total(chain.from_iterable(found))
    with TableWriter(path) as write:
        return total(chain.from_iterable(_written(found, write, language.has_pieces)))


def _written(
    found: Iterable[list[Score]], write: Callable[[Iterable[Row]], None], has_pieces: bool
) -> Iterator[list[Score]]:
    for scores in found:
        write(row_of(each, has_pieces) for each in scores)
        yield scores


def row_of(scored: Score, has_pieces: bool = False) -> Row:
    """A row of the table; with pieces of several residues also the perplexity per residue."""
    row: Row = {"id": scored.id, "length": scored.length, "n_scored": scored.n_scored, "nll": _digits(scored.nll)}
    row["perplexity"] = _digits(scored.perplexity)
    return row | ({"perplexity_per_residue": _digits(scored.perplexity_per_residue)} if has_pieces else {})


def _digits(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.7g}")


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout; a model in the middle of its training goes on with it afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Chunk:
    """Records with their sequences in the model's alphabet, their tokens, and the places of those that count."""

    records: Sequence[Record]
    sequences: Sequence[str]
    encoded: Sequence[Encoded]
    scored: Sequence[np.ndarray]

    @property
    def longest_first(self) -> list[int]:
        """The order in which sequences are run: running out of memory happens at once or never."""
        return sorted(range(len(self.encoded)), key=lambda at: -len(self.encoded[at]))


def _tokenised(language: LanguageModel, records: Sequence[Record]) -> _Chunk:
    alphabet = ALPHABETS[language.family.alphabet]
    sequences = [clean(tidy(each.sequence), alphabet, "map", each.place).sequence for each in records]
    encoded = language.tokenizer.encode_all(sequences)
    scored = [_scored_tokens(language, *pair) for pair in zip(sequences, encoded, strict=True)]
    return _Chunk(records, sequences, encoded, scored)


def _sample(chunk: _Chunk) -> list[np.ndarray]:
    """Places of a sample of the tokens that count; the order of the sequences has no say in it."""
    order = sorted(range(len(chunk.sequences)), key=lambda at: chunk.sequences[at])
    owner = np.repeat(order, [len(chunk.scored[at]) for at in order])
    place = np.concatenate([chunk.scored[at] for at in order])
    chosen = np.sort(np.random.default_rng(0).choice(len(place), min(len(place), FITTED_ON), replace=False))
    return [place[chosen[owner[chosen] == at]] for at in range(len(order))]


def _trust_of(language: LanguageModel, chunk: _Chunk, budget: int) -> float:
    """Fit `masked_from_visible` to a sample of the tokens, which are asked for both visible and masked."""
    sampled = [(at, places) for at, places in enumerate(_sample(chunk)) if len(places)]
    if not sampled:
        return 0.0
    sampled.sort(key=lambda pair: -len(chunk.encoded[pair[0]]))
    visible, masked = (
        np.concatenate([log_p for _, log_p in _answers(language, ask, chunk, sampled, budget)])
        for ask in (_as_it_is, _each_masked)
    )
    return fitted_trust(visible, masked)


def _answers(
    language: LanguageModel, ask: Ask, chunk: _Chunk, asked: Iterable[tuple[int, np.ndarray]], budget: int
) -> Iterator[tuple[list[Question], np.ndarray]]:
    """Batches of questions about (sequence, places), longest sequence first, with the log-probabilities answered."""
    questions = chain.from_iterable(ask(language, at, chunk.encoded[at], places) for at, places in asked)
    batches = _batches(questions, min(budget, MOST_LOGITS // int(language.model.config.vocab_size)))
    longest = max(len(each.input_ids) for each in chunk.encoded)
    workers = workers_for(language.model, max(budget, longest))
    return side_by_side(lambda batch: (batch, _log_probabilities(language, batch)), batches, workers)


def _score_chunk(
    language: LanguageModel, chunk: _Chunk, name: str, trust: float, budget: int, each_batch: EachBatch | None
) -> list[Score]:
    nll, n_scored = np.zeros(len(chunk.records)), np.zeros(len(chunk.records), dtype=int)
    asked = ((at, chunk.scored[at]) for at in chunk.longest_first)
    for batch, log_p in _answers(language, methods_of(language.family)[name].ask, chunk, asked, budget):
        owners = np.repeat([each.sequence for each in batch], [len(each.places) for each in batch])
        np.add.at(nll, owners, -masked_from_visible(log_p, trust))
        np.add.at(n_scored, owners, 1)
        if each_batch is not None:
            each_batch(len(batch))
    alphabet = ALPHABETS[language.family.alphabet]
    return [
        Score(
            id=record.id,
            length=len(chunk.sequences[at]),
            n_scored=int(n_scored[at]),
            n_residues=_n_residues(chunk.encoded[at], chunk.scored[at][len(chunk.scored[at]) - n_scored[at] :]),
            nll=float(nll[at]),
            n_cut=chunk.encoded[at].n_cut,
            n_unknown=len(unknown_letters(tidy(record.sequence), alphabet)),
            method=name,
        )
        for at, record in enumerate(chunk.records)
    ]


def _scored_tokens(language: LanguageModel, sequence: str, encoded: Encoded) -> np.ndarray:
    """Places of the tokens that count, in order: they hold residues, and none that is unknown."""
    family = language.family
    unknown = set(ALPHABETS[family.alphabet].unknown + family.letters_to_unknown)
    is_unknown = np.fromiter((letter in unknown for letter in sequence), dtype=bool, count=len(sequence))
    before = np.concatenate([[0], is_unknown.cumsum()])
    start, stop = encoded.spans[:, 0], _ends(encoded)
    known = (stop > start) & (before[stop] == before[start])
    return np.flatnonzero(known & (encoded.input_ids != language.tokenizer.tokenizer.unk_token_id))


def _ends(encoded: Encoded) -> np.ndarray:
    """Where tokens end; the last one of a cut sequence ends where it did before it answered for the rest."""
    return np.minimum(encoded.spans[:, 1], encoded.spans[:, 1].max(initial=0) - encoded.n_cut)


def _n_residues(encoded: Encoded, scored: np.ndarray) -> int:
    """Residues in the tokens that count, each of them once."""
    start, stop = encoded.spans[scored, 0], _ends(encoded)[scored]
    new_from = np.maximum(start, np.concatenate([[0], stop[:-1]]))  # tokens are in order and may overlap
    return int((stop - new_from).sum())


def _batches(questions: Iterable[Question], budget: int) -> Iterator[list[Question]]:
    """Cut a stream of questions, longest first, into batches within a budget of tokens, padding included."""
    batch: list[Question] = []
    for question in questions:
        if batch and len(batch[0].input_ids) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


def _log_probabilities(language: LanguageModel, batch: Sequence[Question]) -> np.ndarray:
    """Log-probabilities of all targets of a batch, in order: (questions,) float64."""
    model = language.model
    device = next(model.parameters()).device
    shape = (len(batch), max(len(each.input_ids) for each in batch))
    ids, mask = np.full(shape, language.tokenizer.pad_token_id), np.zeros(shape, dtype=np.int64)
    for at, each in enumerate(batch):
        ids[at, : len(each.input_ids)], mask[at, : len(each.input_ids)] = each.input_ids, 1
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if language.family.objective == "span":
        inputs["decoder_input_ids"] = torch.tensor([[language.symbols.start, _stand_in(language)]] * len(batch))
    rows = np.repeat(np.arange(len(batch)), [len(each.places) for each in batch])
    places, targets = (np.concatenate([getattr(each, name) for each in batch]) for name in ("places", "targets"))
    with torch.inference_mode():
        logits = model(**{name: each.to(device) for name, each in inputs.items()}).logits
        answers = logits[torch.from_numpy(rows).to(device), torch.from_numpy(places).to(device)]
        log_p = answers.float().log_softmax(-1).cpu().double().numpy()
    return np.asarray(log_p[np.arange(len(targets)), targets])
