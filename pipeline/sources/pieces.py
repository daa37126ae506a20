"""What is read from a shard at once, as samples, and those among them that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.sources.sequences import stacked
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.schemas.labelset import Reject
from softlabel.schemas.sample import Array, SampleBlock


class Piece(NamedTuple):
    """Samples as their shard gives them, and those among them that cannot be used, by place."""

    samples: SampleBlock
    rejects: dict[int, Reject]


def sample_block(rows: ShardRows, pixels: Array, numbers: npt.NDArray[np.integer]) -> SampleBlock:
    """The rows with their pictures, or M views `[N * M, ...]` of each, of numbers `[N, M]`."""
    samples, views = numbers.shape
    if views == 1:
        return SampleBlock(rows.keys, pixels, rows.labels)
    again = pa.array(np.arange(samples).repeat(views))
    return SampleBlock(
        rows.keys.take(again), pixels, rows.labels.take(again), numbers.ravel().astype(np.uint16)
    )


def concat_samples(blocks: Sequence[SampleBlock]) -> SampleBlock:
    """The samples of `blocks`, one after the other."""
    if len(blocks) == 1:
        return blocks[0]
    views = [block.views for block in blocks if block.views is not None]
    return SampleBlock(
        pa.concat_arrays([block.keys for block in blocks]),
        stacked([block.inputs for block in blocks]),
        pa.concat_arrays([block.labels for block in blocks]),
        np.concatenate(views) if views else None,
    )
