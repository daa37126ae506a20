"""The mean of what several teachers say of the same samples: of their logits, or probabilities.

N rows, C classes. Means are taken in float64: equal members give back their own labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.numerics import Floats, log_softmax

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mean:
    """How members are averaged: weights that sum to 1, of logits or of probabilities at T."""

    weights: tuple[float, ...]
    temperature: float | None = None

    @classmethod
    def of_members(
        cls, members: int, weights: Sequence[float], temperature: float | None = None
    ) -> Mean:
        """The mean of so many members, all alike where `weights` is empty."""
        weights = weights or (1.0,) * members
        total = math.fsum(weights)
        return cls(tuple(weight / total for weight in weights), temperature)

    def logits(self, members: Sequence[Doubles]) -> Doubles:
        """Logits `[N, C]` of each member to logits of the mean.

        Of logits: `sum w z`. Of probabilities: `T log sum w softmax(z / T)`, whose softmax at T is
        the mean. A row in which nothing is left has only -inf, one that holds no number has NaN.
        """
        if self.temperature is None:
            return self.sum(members)
        return self.temperature * _mean_log_softmax(
            self.weights, [logits / self.temperature for logits in members]
        )

    def sum(self, members: Sequence[Doubles]) -> Doubles:
        """The weighted sum of one array of each member."""
        total: Doubles = np.zeros_like(members[0])
        for weight, value in zip(self.weights, members, strict=True):
            total += weight * value
        return total


def narrowed(values: Doubles) -> Floats:
    """To float32; what is finite stays finite."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    narrow[np.isneginf(narrow) & ~np.isneginf(values)] = np.finfo(np.float32).min
    return narrow


def _mean_log_softmax(weights: Sequence[float], logits: Sequence[Doubles]) -> Doubles:
    """`log sum w softmax(z)`, `[N, C]`."""
    logs = [
        log_softmax(values) + np.log(weight) for values, weight in zip(logits, weights, strict=True)
    ]
    return np.asarray(np.logaddexp.reduce(logs, axis=0))
