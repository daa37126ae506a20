"""Disjoint parts of a source, one a member, by the hashes of the keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.labelset.keys import key_hashes
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Segment


@dataclass(frozen=True, slots=True)
class Share:
    """Part `index` of `parts`: the samples with `XXH3-64(key) mod parts = index`."""

    index: int
    parts: int

    def holds(self, keys: pa.StringArray) -> npt.NDArray[np.bool_]:
        """Which of the keys are of this part, `[N]`."""
        return np.asarray(key_hashes(keys) % np.uint64(self.parts) == self.index)

    def rows(self, source: Source) -> int:
        """Samples of the part; reads the keys alone. Raises DataError where there are none."""
        rows = 0
        for file in source.files:
            if file.rows:
                segment = Segment(source=file.name, first=0, rows=file.rows)
                rows += int(self.holds(source.keys([segment])).sum())
        if not rows:
            raise DataError(
                f"{source.path}: has {source.rows} samples, too few for {self.parts} members with "
                "parts of their own; pass --member-data same"
            )
        return rows

    def batches(self, batches: Iterator[TrainingBatch], batch_size: int) -> Iterator[TrainingBatch]:
        """The part's samples of an epoch's batches, in their order, in batches of `batch_size`."""
        left: list[TrainingBatch] = []
        held = 0
        for batch in batches:
            own = _taken(batch, np.flatnonzero(self.holds(batch.keys)))
            left.append(own)
            held += len(own.keys)
            while held >= batch_size:
                whole = _joined(left)
                yield _taken(whole, np.arange(batch_size))
                left, held = [_taken(whole, np.arange(batch_size, held))], held - batch_size
        if held:
            yield _joined(left)


def _taken(batch: TrainingBatch, rows: npt.NDArray[np.int64]) -> TrainingBatch:
    return TrainingBatch(
        batch.keys.take(pa.array(rows)), batch.pixels[rows], batch.labels[rows], None
    )


def _joined(batches: list[TrainingBatch]) -> TrainingBatch:
    return TrainingBatch(
        pa.concat_arrays([batch.keys for batch in batches]),
        np.concatenate([batch.pixels for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
        None,
    )
