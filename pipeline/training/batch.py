"""A batch of samples with what the teacher said of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.factored import FactoredRows
from softlabel.pipeline.codecs.sparse import SparseTargets
from softlabel.pipeline.shards.block import LabelBlock, spread


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """N samples: pixels uint8 `[N, H, W, C]`, labels int64 `[N]`; what the teacher said, if any.

    Of sequences pixels are inputs as in `SampleBlock`, lengths says how many positions each has,
    and all else is of these positions, one sample's after the other. partly: whether a label of
    the source may be `IGNORED`.
    teacher: logits `[N, C]`; sparse, factored: in their place what a `topk` set kept, or what a
    `factored` one stores, where asked for. features: its stored features, float16 `[N, d]`,
    likewise.
    share: how much of a step's batch these are: less than 1 where ranks or parts divide it; of
    sequences how many of its positions. labelled_share: likewise of all with a hard label, where
    they are so but partly.
    """

    keys: pa.StringArray
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    teacher: npt.NDArray[np.floating] | None
    sparse: SparseTargets | None = None
    features: npt.NDArray[np.float16] | None = None
    share: float = 1.0
    lengths: npt.NDArray[np.uint32] | None = None
    labelled_share: float = 1.0
    factored: FactoredRows | None = None
    partly: bool = False

    @property
    def labelled(self) -> int:
        """How many samples or positions have a hard label."""
        return int((self.labels >= 0).sum())

    def take(self, rows: npt.NDArray[np.int64]) -> TrainingBatch:
        """The samples of these rows, in this order."""
        lengths = self.lengths
        places = rows if lengths is None else spread(self._starts(), rows)
        return TrainingBatch(
            self.keys.take(pa.array(rows)),
            self.pixels[rows],
            self.labels[places],
            None if self.teacher is None else self.teacher[places],
            None if self.sparse is None else self.sparse.take(places),
            None if self.features is None else self.features[places],
            self.share,
            None if lengths is None else lengths[rows],
            self.labelled_share,
            None if self.factored is None else self.factored.take(places),
            self.partly,
        )

    def parts(self, number: int) -> Iterator[TrainingBatch]:
        """The batch in so many even parts, or in as many as it has samples.

        Of sequences parts without any position are left out, but where the batch has none.
        """
        bounds = np.linspace(0, len(self.keys), min(number, len(self.keys)) + 1).astype(int)
        starts = self._starts()
        for first, end in itertools.pairwise(bounds.tolist()):
            start, stop = starts[first], starts[end]
            if start == stop and len(self.labels):
                continue
            labels = self.labels[start:stop]
            labelled = float((labels >= 0).sum()) / max(1, self.labelled)
            yield TrainingBatch(
                self.keys.slice(first, end - first),
                self.pixels[first:end],
                labels,
                None if self.teacher is None else self.teacher[start:stop],
                None if self.sparse is None else self.sparse.take(np.arange(start, stop)),
                None if self.features is None else self.features[start:stop],
                self.share * float(stop - start) / max(1, len(self.labels)),
                None if self.lengths is None else self.lengths[first:end],
                self.labelled_share * labelled,
                None if self.factored is None else self.factored.take(np.arange(start, stop)),
                self.partly,
            )

    def _starts(self) -> npt.NDArray[np.int64]:
        """Where the positions of each sample begin, and the end of the last, `[N + 1]`."""
        if self.lengths is None:
            return np.arange(len(self.keys) + 1)
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])


@dataclass(frozen=True, slots=True)
class JoinedBatch:
    """N samples as in `TrainingBatch`, with their label rows as they are stored."""

    keys: pa.StringArray
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    block: LabelBlock | None
    lengths: npt.NDArray[np.uint32] | None = None
