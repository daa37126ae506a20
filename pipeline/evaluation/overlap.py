"""Mean intersection over union: how well a segmenter's classes cover those of the masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer]


class Overlap:
    """Counts of positions by class; memory is constant."""

    def __init__(self, classes: int) -> None:
        self._labelled = np.zeros(classes, np.int64)
        self._said = np.zeros(classes, np.int64)
        self._both = np.zeros(classes, np.int64)

    def add(self, labels: Integers, said: Integers) -> None:
        """Count `[N]` hard labels and a model's top-1."""
        size = len(self._both)
        self._labelled += np.bincount(labels, minlength=size)
        self._said += np.bincount(said, minlength=size)
        self._both += np.bincount(labels[said == labels], minlength=size)

    def mean(self) -> float:
        """The mean of |both| / |either| over the classes that are labelled or said anywhere.

        The Jaccard index, as PASCAL VOC measures segmentation.
        """
        either = self._labelled + self._said - self._both
        met = either > 0
        return float((self._both[met] / either[met]).mean())
