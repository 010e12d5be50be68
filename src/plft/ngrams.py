"""What counting alone predicts: unigram and bigram perplexity, the bars that a language model has to beat."""

from __future__ import annotations

import math

import numpy as np

from plft.corpus import Corpus, Part

MOST_SYMBOLS = 5000  # a table of pairs above this does not fit
MOST_TOKENS = 20_000_000  # counted of the training part; the table hardly changes after that
_ENTRIES = 2000


def ngram_perplexities(train: Part, held_out: Part, n_symbols: int) -> dict[str, float]:
    """Unigram and bigram perplexity of a held-out part, counted on a training part.

    Bigrams are conditioned on the token to the left, at the start of an entry on nothing; both are smoothed by adding
    one to every count.  n_symbols: size of the vocabulary; above `MOST_SYMBOLS` only unigrams are counted.
    """
    with_pairs = n_symbols <= MOST_SYMBOLS
    single, pairs = _counts(train, n_symbols, with_pairs, MOST_TOKENS)
    tokens, seen = _counts(held_out, n_symbols, with_pairs, MOST_TOKENS)
    total = tokens.sum()
    if not total:
        return {}
    seen_symbols = max(1, int((single > 0).sum()))
    log_single = np.log((single + 1) / (single.sum() + seen_symbols))
    found = {"unigram": math.exp(-float((tokens * log_single).sum() / total))}
    if with_pairs:
        log_pair = np.log((pairs + 1) / (pairs.sum(1, keepdims=True) + seen_symbols))
        found["bigram"] = math.exp(-float((seen * log_pair).sum() / total))
    return found


def _counts(part: Part, n_symbols: int, with_pairs: bool, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of tokens (symbols,) and of pairs (symbols + 1, symbols), whose last row is the start of an entry."""
    single = np.zeros(n_symbols, np.int64)
    pairs = np.zeros(((n_symbols + 1) * n_symbols,) if with_pairs else (0,), np.int64)
    done = 0
    for numbers in _spread(len(part)):
        entries = [_whole(part.corpus, int(entry)) for entry in part.entry(numbers)]
        tokens = np.concatenate(entries)
        single += np.bincount(tokens, minlength=n_symbols)
        if with_pairs:
            left = np.concatenate([np.concatenate([[n_symbols], each[:-1]]) for each in entries])
            pairs += np.bincount(left * n_symbols + tokens, minlength=len(pairs))
        done += len(tokens)
        if done >= most:
            break
    return single, pairs.reshape(-1, n_symbols) if with_pairs else pairs


def _spread(n: int) -> list[np.ndarray]:
    """All entries in groups, each group taken from all over the part."""
    step = max(1, n // _ENTRIES)
    return [np.arange(offset, n, step) for offset in range(step)]


def _whole(corpus: Corpus, entry: int) -> np.ndarray:
    return corpus.read(entry, 0, int(corpus.lengths[entry]))
