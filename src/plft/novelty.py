"""Inputs unlike anything the model learned from: the distance to the nearest training sequence.

Measured between mean hidden states over residues of the tuned backbone, where nearest neighbours tell inputs that a
model does not know better than its own probabilities do (Sun et al. 2022, Out-of-distribution detection with deep
nearest neighbors).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

Vectors = NDArray[np.float32]
FAR_QUANTILE = 0.99
LEAST_TYPICAL = 0.01  # of the distance that is far; a median below it is that of copies of training sequences


@dataclass(frozen=True)
class Neighbours:
    """Some training sequences as vectors, and from which distance to them an input counts as far.

    states: (sequences, width) float32.  threshold, typical: in the units of the states; typical is the median distance
    of held-out sequences, None where most of them are copies of training ones and in folders from before it was kept.
    """

    states: Vectors
    threshold: float
    typical: float | None = None

    @cached_property
    def _centre(self) -> NDArray[np.float64]:
        """Hidden states share one large direction; without it no digits are lost in the differences."""
        centre: NDArray[np.float64] = self.states.mean(axis=0, dtype=np.float64)
        return centre

    @cached_property
    def _index(self) -> NearestNeighbors:
        return NearestNeighbors(n_neighbors=1, algorithm="brute").fit(self.states - self._centre)

    def distances(self, states: Vectors) -> NDArray[np.float64]:
        """Return the Euclidean distance of each of (inputs, width) states to the nearest kept one: (inputs,)."""
        if not len(states):
            return np.empty(0)
        found: NDArray[np.float64] = self._index.kneighbors(states - self._centre)[0][:, 0]
        return found

    def difficulty(self, distance: float) -> float:
        """Return how much harder than usual an input at this distance is taken to be: 1 at the typical distance.

        Half of it stays the same everywhere and half grows with the distance, so that it is 0.5 at distance 0.
        """
        return (1 + distance / self.typical) / 2 if self.typical else 1.0


def fit_neighbours(training: Vectors, held_out: Vectors | None) -> Neighbours | None:
    """Keep training states, and call far what lies further than 99 % of the held-out ones, typical their median.

    training, held_out: (sequences, width).  Without held-out states each training one is asked for its nearest other.
    None where there are not two training sequences, or training diverged and states are no numbers.
    """
    if len(training) < 2 or not all(np.isfinite(each).all() for each in (training, held_out) if each is not None):
        return None
    kept = Neighbours(training.astype(np.float32), np.inf)
    if held_out is not None and len(held_out):
        distances = kept.distances(held_out)
    else:
        distances = kept._index.kneighbors()[0][:, 0]
    typical, threshold = np.quantile(distances, (0.5, FAR_QUANTILE))
    is_usual = typical > LEAST_TYPICAL * threshold
    return Neighbours(kept.states, float(threshold), float(typical) if is_usual else None)
