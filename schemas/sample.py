"""The record that flows through: a block of samples with keys, inputs and hard labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
Logits = npt.NDArray[np.float32]
# Of inputs that are sequences the field, bool `[N, L]`, that says which positions are no padding.
POSITIONS = "softlabel.positions"


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """What a teacher says of N samples, or of N positions where samples are sequences.

    logits: float32 `[N, classes]`. features: an inner output, float32 `[N, width]`, where one was
    asked for.
    """

    logits: Logits
    features: npt.NDArray[np.float32] | None = None

    def take(self, rows: npt.NDArray[np.int64]) -> TeacherOutput:
        """What it says of the samples `rows`."""
        features = None if self.features is None else self.features[rows]
        return TeacherOutput(self.logits[rows], features)


# From the inputs of samples, as `SampleBlock` has them.
RunTeacher = Callable[[Array], TeacherOutput]


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """N samples in source order, or N views of samples, those of one sample together.

    keys: unique strings, `[N]`. inputs: uint8 pictures, `[N, height, width, channels]`, or of
    tables a structured array `[N]` with a field of numbers for each named input; of sequences with
    the field `POSITIONS`, padded to the longest one.
    labels: int32 hard labels, `[N]`, null where unknown; of sequences lists of these, one a
    position that is no padding. views: their numbers, uint16 `[N]`, or None where samples have one.
    """

    keys: pa.StringArray
    inputs: Array
    labels: pa.Int32Array
    views: npt.NDArray[np.uint16] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> npt.NDArray[np.uint32] | None:
        """How many positions each sample has, uint32 `[N]`; None where samples are no sequences."""
        if not pa.types.is_large_list(self.labels.type):
            return None
        return np.asarray(np.diff(self.labels.offsets.to_numpy()), np.uint32)

    @property
    def flat_labels(self) -> pa.Int32Array:
        """Hard labels int32 `[P]` of all positions, of samples that are no sequences `[N]`."""
        return self.labels if self.lengths is None else self.labels.flatten()

    def hard_labels(self) -> npt.NDArray[np.int32]:
        """Hard labels as int32 `[P]`, -1 where unknown; see `flat_labels`."""
        filled = self.flat_labels.fill_null(-1)
        return filled.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]

    def slice(self, first: int, rows: int) -> SampleBlock:
        """Rows `first` to `first + rows` without copying."""
        return SampleBlock(
            self.keys.slice(first, rows),
            self.inputs[first : first + rows],
            self.labels.slice(first, rows),
            None if self.views is None else self.views[first : first + rows],
        )

    def take(self, rows: npt.NDArray[np.int64]) -> SampleBlock:
        """The samples `rows`, in that order."""
        numbers = pa.array(rows)
        return SampleBlock(
            self.keys.take(numbers),
            self.inputs[rows],
            self.labels.take(numbers),
            None if self.views is None else self.views[rows],
        )
