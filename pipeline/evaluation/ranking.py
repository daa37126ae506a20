"""Figures that need all confidences in order: risk against coverage, bins of equal mass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


class Ranking:
    """Confidences and hits of all rows: 9 bytes a row."""

    def __init__(self) -> None:
        self._confidences: list[Doubles] = []
        self._hits: list[npt.NDArray[np.bool_]] = []

    def add(self, confidence: Doubles, hit: npt.NDArray[np.bool_]) -> None:
        """Keep a batch: the top-1's probability and whether it is the label, each `[N]`."""
        self._confidences.append(confidence)
        self._hits.append(hit)

    def aurc(self) -> float:
        """Area under the risk-coverage curve: the mean error rate over every coverage 1/N .. 1.

        Geifman & El-Yaniv 2017, section 2: the most confident rows are kept first. Rows of equal
        confidence share their errors evenly, so that their order does not matter.
        """
        confidence, hit = self._in_order()
        _, first, size = np.unique(-confidence, return_index=True, return_counts=True)
        wrong = np.add.reduceat(~hit, first, dtype=np.float64)
        errors = np.cumsum(np.repeat(wrong / size, size))
        return _mean_risk(errors)

    def excess_aurc(self) -> float:
        """AURC less that of the best order of the same errors (Geifman et al. 2019, eq. 5)."""
        _, hit = self._in_order()
        best = np.cumsum(np.sort(~hit).astype(np.float64))
        return self.aurc() - _mean_risk(best)

    def adaptive_ece(self, bins: int) -> float:
        """ECE over `bins` bins of equal mass (Nixon et al. 2019, section 3.2, of the top-1).

        Sizes differ by one row at most; fewer rows than bins are a bin each.
        """
        confidence, hit = self._in_order()
        edges = np.linspace(0, len(hit), min(bins, len(hit)) + 1).astype(np.int64)[:-1]
        gaps = np.add.reduceat(hit - confidence, edges)
        return float(np.abs(gaps).sum()) / len(hit)

    def _in_order(self) -> tuple[Doubles, npt.NDArray[np.bool_]]:
        """Confidences, largest first, and their hits; kept, so that it is sorted once."""
        if len(self._confidences) > 1:
            self._confidences = [np.concatenate(self._confidences)]
            self._hits = [np.concatenate(self._hits)]
        order = np.argsort(-self._confidences[0], kind="stable")
        return self._confidences[0][order], self._hits[0][order]


def _mean_risk(errors: Doubles) -> float:
    return float((errors / np.arange(1, len(errors) + 1)).mean())
