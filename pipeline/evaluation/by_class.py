"""How often a run's students are right, and say what their labels say, class by class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabel.schemas.reports.figures import ClassShares

Integers = npt.NDArray[np.integer]


class ClassCounts:
    """Counts over samples by their hard label; memory is constant."""

    def __init__(self, classes: int) -> None:
        self._rows = np.zeros(classes, np.int64)
        self._right = np.zeros(classes, np.int64)
        self._agreeing: npt.NDArray[np.int64] | None = None

    def add(self, labels: Integers, said: Integers, taught: Integers | None) -> None:
        """Count `[N]` hard labels, a student's top-1 and, where known, that of stored labels."""
        size = len(self._rows)
        self._rows += np.bincount(labels, minlength=size)
        self._right += np.bincount(labels[said == labels], minlength=size)
        if taught is not None:
            same = np.bincount(labels[said == taught], minlength=size)
            self._agreeing = same if self._agreeing is None else self._agreeing + same

    def shares(self) -> ClassShares:
        """The shares of the samples so far."""
        return ClassShares(
            rows=tuple(self._rows.tolist()),
            accuracy=self._share(self._right),
            agreement=None if self._agreeing is None else self._share(self._agreeing),
        )

    def _share(self, counts: npt.NDArray[np.int64]) -> tuple[float | None, ...]:
        pairs = zip(counts.tolist(), self._rows.tolist(), strict=True)
        return tuple(count / rows if rows else None for count, rows in pairs)
