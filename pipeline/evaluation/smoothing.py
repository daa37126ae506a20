"""Signs that a teacher was trained with label smoothing, from what it said, in one streaming pass.

Smoothing makes a network give all classes but the likeliest an even and equal share of a mass that
does not depend on the sample (Müller et al. 2019, sections 2 and 4).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.codec import Columns, Decoder
from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.evaluation.class_means import ClassMeans
from softlabel.schemas.soft_targets import SmoothingSigns

# Two classes beside the top-1 are the fewest whose shares can be uneven.
FEWEST_CLASSES = 3

Doubles = npt.NDArray[np.float64]


def can_tell(codec: Decoder, classes: int) -> bool:
    """Whether labels in this codec hold enough to be asked: T = 1, and three classes of a row."""
    if isinstance(codec, TopK):
        return min(codec.temperatures) <= 1 and codec.k >= FEWEST_CLASSES
    return classes >= FEWEST_CLASSES


def told_apart(codec: Decoder, columns: Columns) -> Floats | None:
    """The logits of the classes that a row of `topk` tells apart, `[N, k]`; None of other codecs.

    The others are spread evenly by the format, which says nothing of the teacher.
    """
    return columns["logits"].astype(np.float32) if isinstance(codec, TopK) else None


class SmoothingSums:
    """Sums over rows of soft targets at T = 1, in float64."""

    def __init__(self, classes: int) -> None:
        self._rows = 0
        self._mass = 0.0
        self._mass_squared = 0.0
        self._evenness = 0.0
        self._square = np.zeros(classes)
        self._means = ClassMeans.within_memory(classes)

    def add(self, probs: Floats, top1: npt.NDArray[np.integer], told: Floats | None = None) -> None:
        """Count rows: soft targets `[N, C]`, their top-1, and what `told_apart` says of them."""
        if not len(top1):
            return
        rows = np.arange(len(top1))
        # By the others' sum: 1 - p has no digits left where p is nearly 1.
        others = probs.astype(np.float64)
        others[rows, top1] = 0
        mass = others.sum(axis=1)
        self._rows += len(rows)
        self._mass += float(mass.sum())
        self._mass_squared += float((mass**2).sum())
        if told is None:
            self._evenness += float(_evenness(others).sum())
        else:
            self._evenness += float(_evenness(np.exp(told[:, 1:].astype(np.float64))).sum())
        if self._means is not None:
            self._means.add(probs, top1)
            square = np.einsum("nc,nc->n", probs, probs, dtype=np.float64)
            self._square += np.bincount(top1, square, len(self._square))

    def signs(self) -> SmoothingSigns | None:
        """The signs in the rows so far; None without a row."""
        if not self._rows:
            return None
        spread = self._mass**2 / self._rows / self._mass_squared if self._mass_squared else 1.0
        return SmoothingSigns(
            rows=self._rows,
            non_target_mass=self._mass / self._rows,
            steadiness=spread,
            evenness=self._evenness / self._rows,
            stability=self._stability(),
        )

    def _stability(self) -> float | None:
        """By `mean |p - c|^2 = mean |p|^2 - |c|^2` with c the mean of p over a class."""
        if self._means is None:
            return None
        means, counts = self._means.means(), self._means.rows
        seen = counts > 0
        distance = self._square[seen] / counts[seen] - (means[seen] ** 2).sum(axis=1)
        return 1 - float(np.maximum(distance, 0).mean())


def _evenness(shares: Doubles) -> Doubles:
    """Entropy of each row's shares over its largest, the logarithm of how many have mass."""
    total = shares.sum(axis=1, keepdims=True)
    shares = np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    kinds = (shares > 0).sum(axis=1)
    most = np.log(np.maximum(kinds, 2))
    entropy = -np.einsum("nc,nc->n", shares, logs)
    return np.where(kinds > 1, entropy / most, 0.0)
