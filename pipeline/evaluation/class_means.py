"""The mean soft target of the samples of each class, in one streaming pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.numerics import Floats

# C x C float64: 34 MB.
MOST_CLASSES = 2048


class ClassMeans:
    """Sums of distributions `[N, C]` by class; `rows` counts those of each class."""

    def __init__(self, classes: int) -> None:
        self.rows = np.zeros(classes, np.int64)
        self._sums = np.zeros((classes, classes))

    @classmethod
    def within_memory(cls, classes: int) -> ClassMeans | None:
        """Sums for so many classes, or None where they would take too much memory."""
        return cls(classes) if classes <= MOST_CLASSES else None

    def add(self, probs: Floats, targets: npt.NDArray[np.integer]) -> None:
        """Count rows `[N, C]` whose classes are `targets` `[N]`."""
        if not len(targets):
            return
        order = np.argsort(targets, kind="stable")
        found, first = np.unique(targets[order], return_index=True)
        self._sums[found] += np.add.reduceat(probs[order], first, axis=0, dtype=np.float64)
        self.rows += np.bincount(targets, minlength=len(self.rows))

    def means(self) -> npt.NDArray[np.float64]:
        """The mean of each class, `[C, C]`; zeros where it has no row."""
        return self._sums / np.maximum(self.rows, 1)[:, None]
