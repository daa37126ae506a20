"""What a receipt says of a shard's rows, summed while they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from softlabel.pipeline.codecs.numerics import Floats, kl_sums
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.labelset import (
    Fidelity,
    Receipt,
    Reject,
    ShardPlan,
    SourceDigest,
    Statistics,
)
from softlabel.schemas.teacher import Grid

FIDELITY_ROWS = 1024
FIDELITY_PICTURES, FIDELITY_POSITIONS = 16, 2**20
# The logits that stored ones are compared with, float32 [P, C], for use at a temperature.
Reference = Callable[[float], Floats]


class Tally:
    """Counts over one shard, and the KL of its first rows to what they were made from.

    temperatures: those whose KL is summed. rows: how many of the shard's first rows are measured;
    where rows have positions, those that begin within so many of these.
    """

    def __init__(self, temperatures: Sequence[float], rows: int) -> None:
        self._temperatures = temperatures
        self._room = rows
        self._rows = 0
        self._labelled = 0
        self._correct = 0
        self._measured = 0
        self._kl = np.zeros(len(temperatures))

    def add(self, block: LabelBlock, reference: Reference) -> None:
        """Count the rows of `block`, and measure those that are among the shard's first."""
        self.count(block)
        rows = int(np.searchsorted(block.starts()[:-1], self._room - self._measured))
        if rows:
            measured = block.slice(0, rows)
            positions = len(measured.top1)
            # What takes a product with the head is the same at every T.
            decoded = None if isinstance(block.codec, TopK) else measured.logits()
            self._kl += [
                kl_sums(
                    reference(T)[:positions],
                    [measured.logits(T) if decoded is None else decoded],
                    (T,),
                )[0]
                for T in self._temperatures
            ]
            self._measured += positions

    def count(self, block: LabelBlock) -> None:
        """Count the rows of `block` without measuring any."""
        labels = block.labels.fill_null(-1).to_numpy(zero_copy_only=False)
        self._rows += len(block)
        self._labelled += int((labels >= 0).sum())
        self._correct += int((labels == block.top1).sum())

    def fidelity(self) -> Fidelity:
        """The KL summed so far."""
        return Fidelity(rows=self._measured, kl_sum=tuple(self._kl.tolist()))

    def receipt(
        self,
        shard: ShardPlan,
        identity_sha256: str,
        file: tuple[int, str],
        source: tuple[SourceDigest, ...],
        fidelity: Fidelity | None = None,
        rejects: Sequence[Reject] = (),
    ) -> Receipt:
        """The receipt of a shard whose file has this size and SHA-256.

        fidelity: known from elsewhere; default: what was measured here. rejects: samples of the
        shard that were left out.
        """
        size, digest = file
        return Receipt(
            shard=shard.name,
            identity_sha256=identity_sha256,
            rows=self._rows,
            bytes=size,
            sha256=digest,
            source=source,
            statistics=Statistics(labelled=self._labelled, correct=self._correct),
            fidelity=fidelity or self.fidelity(),
            rejects=tuple(rejects) or None,
        )


def measured_rows(shards: int, grid: Grid | None) -> int:
    """How many rows, or positions of rows, of each of so many shards are measured.

    grid: of the positions of a picture. What one says is no sample of all: a million positions are
    measured, or 16 pictures, and never more pictures than other rows.
    """
    if grid is None:
        return -(-FIDELITY_ROWS // shards)
    each = math.prod(grid)
    pictures = min(FIDELITY_ROWS, max(FIDELITY_PICTURES, FIDELITY_POSITIONS // each))
    return -(-pictures // shards) * each
