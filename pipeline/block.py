"""A block of stored labels as it comes back from a label set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs import Codec, Columns, Floats, softmax


@dataclass(frozen=True, slots=True)
class LabelBlock:
    """N label rows of C classes.

    keys `[N]`; labels int32 `[N]`, null where unknown; top1 `[N]`, the teacher's arg-max; shift
    float32 `[N]`, the row's largest logit; payload: the codec's columns, as stored.
    """

    keys: pa.StringArray
    labels: pa.Int32Array
    top1: npt.NDArray[np.unsignedinteger]
    shift: npt.NDArray[np.float32]
    payload: Columns
    codec: Codec

    def __len__(self) -> int:
        return len(self.keys)

    def logits(self, T: float = 1.0) -> Floats:
        """Float32 `[N, C]` whose `softmax(. / T)` are the soft targets at T; T > 0.

        The dense codecs give the same logits for every T; `topk` spreads its tail for this one.
        """
        if not 0 < T < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {T}")
        return self.codec.logits(self.payload, T)

    def probs(self, T: float) -> Floats:
        """Soft targets `softmax(z / T)`, float32 `[N, C]`; T > 0."""
        return softmax(self.logits(T), T)

    def slice(self, first: int, rows: int) -> LabelBlock:
        """Rows `first` to `first + rows` without copying."""
        end = first + rows
        return replace(
            self,
            keys=self.keys.slice(first, rows),
            labels=self.labels.slice(first, rows),
            top1=self.top1[first:end],
            shift=self.shift[first:end],
            payload={name: values[first:end] for name, values in self.payload.items()},
        )


def concat_blocks(blocks: Sequence[LabelBlock]) -> LabelBlock:
    """The rows of `blocks` of one label set, one after the other; a single block as it is."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    return LabelBlock(
        pa.concat_arrays([block.keys for block in blocks]),
        pa.concat_arrays([block.labels for block in blocks]),
        np.concatenate([block.top1 for block in blocks]),
        np.concatenate([block.shift for block in blocks]),
        {name: np.concatenate([block.payload[name] for block in blocks]) for name in first.payload},
        first.codec,
    )
