"""Accuracy, negative log-likelihood and calibration error, in one streaming pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabel.schemas.reports import Bin


class ClassifierMetrics:
    """Sums over batches of logits and hard labels; sums in float64, memory constant.

    bins: equal-width confidence bins, each (low, high]; a confidence of exactly 1 is in the last.
    """

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self.rows = 0
        self._correct = 0
        self._nll = 0.0
        self._bin_rows = np.zeros(bins, np.int64)
        self._bin_confidence = np.zeros(bins)
        self._bin_correct = np.zeros(bins, np.int64)

    def add(self, logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> None:
        """Count a batch: logits `[N, C]` of any shift, labels `[N]` in 0..C-1.

        Raises ValueError where logits hold NaN or +inf.
        """
        if not len(labels):
            return
        highest = logits.max(axis=1, keepdims=True).astype(np.float64)
        if not np.isfinite(highest).all():
            raise ValueError("logits hold NaN or infinity")
        shifted = logits.astype(np.float64) - highest
        norm = np.exp(shifted).sum(axis=1)
        rows = np.arange(len(labels))
        hit = logits.argmax(axis=1) == labels
        self.rows += len(labels)
        self._correct += int(hit.sum())
        self._nll += float((np.log(norm) - shifted[rows, labels]).sum())
        self._fill_bins(1 / norm, hit)

    @property
    def accuracy(self) -> float:
        """Share of rows whose arg-max is the label."""
        return self._correct / self.rows

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the label, in nats."""
        return self._nll / self.rows

    @property
    def ece(self) -> float:
        """Expected calibration error: sum of |B|/N |acc(B) - conf(B)| (Guo et al. 2017, eq. 3)."""
        return float(np.abs(self._bin_correct - self._bin_confidence).sum()) / self.rows

    def bins(self) -> tuple[Bin, ...]:
        """The reliability diagram."""
        return tuple(
            Bin(
                low=index / self._bins,
                high=(index + 1) / self._bins,
                rows=int(rows),
                confidence=float(self._bin_confidence[index] / rows) if rows else None,
                accuracy=float(self._bin_correct[index] / rows) if rows else None,
            )
            for index, rows in enumerate(self._bin_rows)
        )

    def _fill_bins(self, confidence: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_]) -> None:
        edges = np.arange(1, self._bins) / self._bins
        index = np.searchsorted(edges, confidence, side="left")
        self._bin_rows += np.bincount(index, minlength=self._bins)
        self._bin_confidence += np.bincount(index, confidence, self._bins)
        self._bin_correct += np.bincount(index, hit, self._bins).astype(np.int64)
