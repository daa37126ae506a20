"""Soft targets as the k largest logits of a row, and one log-sum for all the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.codec import Columns
from softlabel.pipeline.codecs.numerics import Floats, largest
from softlabel.pipeline.codecs.topk import TopK


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """The k largest logits of P rows, value descending, id ascending; the rest as one log-sum.

    ids `[P, k]`; logits float32 `[P, k]`, shifted by the row's maximum; tail_lse float32 `[P]`,
    `logsumexp(z / T)` over the classes not kept, -inf where they have no mass; T: of tail_lse.
    """

    ids: npt.NDArray[np.unsignedinteger]
    logits: Floats
    tail_lse: Floats
    T: float

    @property
    def tail_mass(self) -> Floats:
        """The share of the softmax at T that the classes not kept have, float32 `[P]`."""
        kept = np.exp(self.logits.astype(np.float64) / self.T).sum(axis=1)
        tail = np.exp(self.tail_lse.astype(np.float64))
        return np.asarray(tail / (kept + tail), np.float32)

    def take(self, rows: npt.NDArray[np.integer]) -> SparseTargets:
        """The rows of these numbers, in this order."""
        return SparseTargets(self.ids[rows], self.logits[rows], self.tail_lse[rows], self.T)


def sparse_of_stored(
    codec: TopK, columns: Columns, T: float, k: int | None = None
) -> SparseTargets:
    """What a `topk` set stores; with a smaller `k`, the dropped classes join the tail.

    Raises ValueError where `k` is impossible or T is below the recorded temperatures.
    """
    stored = columns["ids"].shape[1]
    k = stored if k is None else k
    if not 1 <= k <= stored:
        raise ValueError(f"k must be from 1 to {stored}, which this topk set stored; got {k}")
    logits = columns["logits"].astype(np.float32)
    tail = np.logaddexp(codec.tail_lse(columns, T), _log_sum(logits[:, k:], T))
    return SparseTargets(columns["ids"][:, :k], logits[:, :k], tail.astype(np.float32), T)


def sparse_of_logits(
    logits: Floats, ids: np.dtype[np.unsignedinteger], T: float, k: int
) -> SparseTargets:
    """The k largest of shifted `logits` `[P, C]`; `ids` is the integer type of the ids.

    Raises ValueError where `k` is impossible.
    """
    classes = logits.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be from 1 to {classes}, the number of classes; got {k}")
    kept = largest(logits, k)
    values = np.take_along_axis(logits, kept, axis=1)
    rest = logits.copy()
    np.put_along_axis(rest, kept, -np.inf, axis=1)
    tail = _log_sum(rest, T).astype(np.float32)
    return SparseTargets(kept.astype(ids), values.astype(np.float32, copy=False), tail, T)


def _log_sum(values: Floats, T: float) -> npt.NDArray[np.float64]:
    """`logsumexp(values / T)` over the last axis; -inf for no values or nothing but -inf."""
    scaled = values.astype(np.float64) / T
    highest = scaled.max(axis=1, initial=-np.inf)
    # A row without mass has no anchor; any finite one leaves its sum at 0.
    anchor = np.where(np.isneginf(highest), 0.0, highest)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(scaled - anchor[:, None]).sum(axis=1)) + anchor)
