"""What counting alone predicts: unigram and bigram perplexity, the bars that a language model has to beat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from plft.corpus import Part

MOST_SYMBOLS = 5000  # a table of pairs above this does not fit
MOST_TOKENS = 20_000_000  # counted of the training part; the table hardly changes after that
_TOGETHER = 1_000_000  # tokens
_ENTRIES = 2000  # looked at in one sweep over the part


def ngram_perplexities(train: Part, held_out: Part, is_special: np.ndarray) -> dict[str, float]:
    """Unigram and bigram perplexity of a held-out part, counted on a training part.

    Bigrams are conditioned on the token to the left, at the start of an entry on nothing; both are smoothed by adding
    one to every count.  is_special: (vocabulary,) bool, symbols that are not scored.  With more than `MOST_SYMBOLS`
    only unigrams are counted.
    """
    n = len(is_special)
    single, pairs = _counts(train, is_special)
    n_seen = max(1, int((single > 0).sum()))
    log_single = np.log((single + 1) / (single.sum() + n_seen))
    log_left = np.log(pairs.sum(1, dtype=np.int64) + n_seen)
    total, sum_single, sum_pair = 0, 0.0, 0.0
    for tokens, left in _groups(held_out, n):
        scored = ~is_special[tokens]
        tokens, left = tokens[scored], left[scored]
        total += len(tokens)
        sum_single += float(log_single[tokens].sum())
        if len(pairs):
            sum_pair += float((np.log(pairs[left, tokens] + 1.0) - log_left[left]).sum())
    if not total:
        return {}
    found = {"unigram": math.exp(-sum_single / total)}
    return found | {"bigram": math.exp(-sum_pair / total)} if len(pairs) else found


def _counts(part: Part, is_special: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of tokens (symbols,) and of pairs (symbols + 1, symbols), whose last row is the start of an entry."""
    n = len(is_special)
    with_pairs = n <= MOST_SYMBOLS
    single, pairs = np.zeros(n, np.int64), np.zeros((n + 1) * n if with_pairs else 0, np.int32)
    for tokens, left in _groups(part, n):
        single += np.bincount(tokens, minlength=n)
        if with_pairs:
            found, times = np.unique(left * n + tokens, return_counts=True)
            pairs[found] += times.astype(np.int32)
    single[is_special] = 0
    table = pairs.reshape(-1, n)
    table[:, is_special] = 0
    return single, table


def _groups(part: Part, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and their left neighbours, about `_TOGETHER` at a time, from all over the part; `start` has none."""
    step = max(1, len(part) // _ENTRIES)
    tokens: list[np.ndarray] = []
    left: list[np.ndarray] = []
    done = waiting = 0
    for number in itertools.chain.from_iterable(range(offset, len(part), step) for offset in range(step)):
        entry = int(part.entry(np.array([number]))[0])
        read = part.corpus.read(entry, 0, int(part.corpus.lengths[entry]))
        tokens.append(read)
        left.append(np.concatenate([[start], read[:-1]]))
        waiting += len(read)
        if waiting >= _TOGETHER:
            yield np.concatenate(tokens), np.concatenate(left)
            done, waiting, tokens, left = done + waiting, 0, [], []
        if done >= MOST_TOKENS:
            return
    if tokens:
        yield np.concatenate(tokens), np.concatenate(left)
