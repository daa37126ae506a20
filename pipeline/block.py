"""A block of stored labels as it comes back from a label set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.encode import softmax


@dataclass(frozen=True, slots=True)
class LabelBlock:
    """N label rows of C classes at K recorded temperatures.

    keys `[N]`; labels int32 `[N]`, null where unknown; top1 `[N]`; shift float32 `[N]`; logits
    float16 `[N, C]`, shifted so that each row's maximum is 0; lse float32 `[N, K]`.
    """

    keys: pa.StringArray
    labels: pa.Int32Array
    top1: npt.NDArray[np.unsignedinteger]
    shift: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float16]
    lse: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)

    def probs(self, T: float) -> npt.NDArray[np.float32]:
        """Soft targets `softmax(z / T)`, float32 `[N, C]`; T > 0."""
        if not 0 < T < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {T}")
        return softmax(self.logits, T)

    def slice(self, first: int, rows: int) -> LabelBlock:
        """Rows `first` to `first + rows` without copying."""
        end = first + rows
        return LabelBlock(
            self.keys.slice(first, rows),
            self.labels.slice(first, rows),
            self.top1[first:end],
            self.shift[first:end],
            self.logits[first:end],
            self.lse[first:end],
        )


def concat_blocks(blocks: Sequence[LabelBlock]) -> LabelBlock:
    """The rows of `blocks`, one after the other; a single block as it is."""
    if len(blocks) == 1:
        return blocks[0]
    return LabelBlock(
        pa.concat_arrays([block.keys for block in blocks]),
        pa.concat_arrays([block.labels for block in blocks]),
        np.concatenate([block.top1 for block in blocks]),
        np.concatenate([block.shift for block in blocks]),
        np.concatenate([block.logits for block in blocks]),
        np.concatenate([block.lse for block in blocks]),
    )
