"""A batch of samples with what the teacher said of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.sparse import SparseTargets
from softlabel.pipeline.shards.block import LabelBlock


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """N samples: pixels uint8 `[N, H, W, C]`, labels int64 `[N]`; what the teacher said, if any.

    teacher: logits `[N, C]`; sparse: in their place what a `topk` set kept, where asked for.
    features: its stored features, float16 `[N, d]`, where asked for.
    share: how much of a step's batch these are: less than 1 where ranks or parts divide it.
    """

    keys: pa.StringArray
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    teacher: npt.NDArray[np.floating] | None
    sparse: SparseTargets | None = None
    features: npt.NDArray[np.float16] | None = None
    share: float = 1.0

    def take(self, rows: npt.NDArray[np.int64]) -> TrainingBatch:
        """The samples of these rows, in this order."""
        return TrainingBatch(
            self.keys.take(pa.array(rows)),
            self.pixels[rows],
            self.labels[rows],
            None if self.teacher is None else self.teacher[rows],
            None if self.sparse is None else self.sparse.take(rows),
            None if self.features is None else self.features[rows],
            self.share,
        )

    def parts(self, number: int) -> Iterator[TrainingBatch]:
        """The batch in so many even parts, or in as many as it has samples."""
        bounds = np.linspace(0, len(self.keys), min(number, len(self.keys)) + 1).astype(int)
        for first, end in itertools.pairwise(bounds.tolist()):
            yield TrainingBatch(
                self.keys.slice(first, end - first),
                self.pixels[first:end],
                self.labels[first:end],
                None if self.teacher is None else self.teacher[first:end],
                None if self.sparse is None else self.sparse.take(np.arange(first, end)),
                None if self.features is None else self.features[first:end],
                self.share * (end - first) / len(self.keys),
            )


@dataclass(frozen=True, slots=True)
class JoinedBatch:
    """N samples as in `TrainingBatch`, with their label rows as they are stored."""

    keys: pa.StringArray
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    block: LabelBlock | None
