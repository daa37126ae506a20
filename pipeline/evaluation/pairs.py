"""How far two classifiers are apart on the same rows, in one streaming pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.numerics import log_softmax
from softlabel.schemas.reports.figures import PairFigures

Logits = npt.NDArray[np.floating]


class PairMetrics:
    """Sums over batches of two models' logits, in float64; memory constant."""

    def __init__(self) -> None:
        self.rows = 0
        self._agreeing = 0
        self._kl = 0.0
        self._difference = 0.0

    def add(self, first: Logits, second: Logits) -> None:
        """Count a batch: logits of both, `[N, C]` of any shift, classes in the same order."""
        logs, other = (log_softmax(np.asarray(part, np.float64)) for part in (first, second))
        probs = np.exp(logs)
        # A class that the first masks has no mass there; its -inf - -inf must not count.
        with np.errstate(invalid="ignore"):
            terms = np.where(probs > 0, probs * (logs - other), 0.0)
        self.rows += len(probs)
        self._agreeing += int((first.argmax(axis=1) == second.argmax(axis=1)).sum())
        self._kl += float(terms.sum())
        self._difference += float(np.abs(probs - np.exp(other)).sum()) / 2

    def figures(self) -> PairFigures:
        """Means over the rows so far."""
        return PairFigures(
            agreement=self._agreeing / self.rows,
            kl=self._kl / self.rows,
            total_variation=self._difference / self.rows,
        )
