"""The mean of what the samples of each class have, such as soft targets, in one streaming pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.shards.block import LabelBlock

# C x C float64: 34 MB.
MOST_CLASSES = 2048


class ClassMeans:
    """Sums of distributions `[N, C]`, or of other rows of `width`; `rows` counts each class's."""

    def __init__(self, classes: int, width: int | None = None) -> None:
        self.rows = np.zeros(classes, np.int64)
        self._sums = np.zeros((classes, width or classes))

    @classmethod
    def within_memory(cls, classes: int) -> ClassMeans | None:
        """Sums for so many classes, or None where they would take too much memory."""
        return cls(classes) if classes <= MOST_CLASSES else None

    def add(self, values: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> None:
        """Count rows `[N, width]` whose classes are `targets` `[N]`."""
        if not len(targets):
            return
        order = np.argsort(targets, kind="stable")
        found, first = np.unique(targets[order], return_index=True)
        self._sums[found] += np.add.reduceat(values[order], first, axis=0, dtype=np.float64)
        self.rows += np.bincount(targets, minlength=len(self.rows))

    def means(self) -> npt.NDArray[np.float64]:
        """The mean of each class, `[C, width]`; zeros where it has no row."""
        return self._sums / np.maximum(self.rows, 1)[:, None]


def row_classes(block: LabelBlock) -> npt.NDArray[np.int64]:
    """Each row's hard label, or its top-1 where that is unknown."""
    known = block.labels.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.where(known >= 0, known, block.top1.astype(np.int64))
