"""The codec `topk`: the k largest logits of a row, and the mass of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codec import Column, Columns, ShiftedRows, to_half
from softlabel.pipeline.numerics import Floats, id_dtype, largest, log_sums


class TopK:
    """`topk`: the k largest logits in float16, and the log-sum of the rest at each temperature.

    Kept and tail sum to one by construction. Between recorded temperatures the tail's log-sum is
    interpolated in 1/T, where it is convex, with the end point ln(C-k) at 1/T = 0; below the
    smallest recorded temperature it is an error. The tail is spread evenly, or, given a `prior`
    (a logit a class), by its softmax at T over the classes that were left out.
    """

    def __init__(
        self,
        k: int,
        num_classes: int,
        temperatures: Sequence[float],
        prior: Floats | None = None,
    ) -> None:
        if not 1 <= k < num_classes:
            raise ValueError(f"k must be from 1 to {num_classes - 1}, got {k}")
        self._k = k
        self._classes = num_classes
        self._prior = prior
        self._temperatures = np.asarray(temperatures, np.float64)
        self.columns = (
            Column("ids", id_dtype(num_classes), k),
            Column("logits", np.dtype(np.float16), k),
            Column("tail_lse", np.dtype(np.float32), len(temperatures)),
        )

    def encode(self, rows: ShiftedRows) -> Columns:
        """Columns `ids` `[N, k]`, `logits` `[N, k]`, `tail_lse` `[N, K]`."""
        ids = largest(rows.d, self._k)
        kept = np.take_along_axis(rows.d, ids, axis=1)
        tail = rows.d.copy()
        np.put_along_axis(tail, ids, -np.inf, axis=1)
        part = ShiftedRows(kept, rows.shift, rows.top1, rows.masked)
        return {
            "ids": ids.astype(id_dtype(self._classes)),
            "logits": to_half(part),
            "tail_lse": self._tail_sums(tail),
        }

    def logits(self, columns: Columns, T: float) -> Floats:
        """The kept logits, and for the rest values that give the tail its mass at T."""
        kept = columns["logits"].astype(np.float32)
        ids = columns["ids"].astype(np.int64)
        mass = self.tail_lse(columns, T)
        if self._prior is None:
            full = np.empty((len(kept), self._classes), np.float32)
            level = T * (mass - np.log(self._classes - self._k))
            # Rounding must not lift a class that was left out above one that was kept.
            full[:] = np.minimum(level, kept[:, -1])[:, None]
        else:
            full = _spread(self._prior, ids, kept[:, -1], mass, T)
        np.put_along_axis(full, ids, kept, axis=1)
        return full

    def tail_lse(self, columns: Columns, T: float) -> npt.NDArray[np.float64]:
        """`logsumexp(d / T)` over the classes that were not kept, `[N]`."""
        lowest = self._temperatures.min()
        if T < lowest:
            raise ValueError(
                f"temperature {T:g} is below {lowest:g}, the smallest that this topk set recorded"
            )
        order = np.argsort(self._temperatures)[::-1]
        points = np.concatenate([[0.0], 1 / self._temperatures[order]])
        right = max(1, int(np.searchsorted(points, 1 / T, side="left")))
        upper = columns["tail_lse"][:, order[right - 1]].astype(np.float64)
        weight = (1 / T - points[right - 1]) / (points[right] - points[right - 1])
        if weight == 1:
            return upper
        if right == 1:
            lower = np.full_like(upper, np.log(self._classes - self._k))
        else:
            lower = columns["tail_lse"][:, order[right - 2]].astype(np.float64)
        return np.where(np.isneginf(upper), upper, (1 - weight) * lower + weight * upper)

    def _tail_sums(self, tail: Floats) -> Floats:
        """Log-sums around the tail's own maximum: a small tail must not vanish."""
        highest = tail.max(axis=1)
        empty = np.isneginf(highest)
        anchor = np.where(empty, np.float32(0), highest)
        sums = log_sums(tail - anchor[:, None], self._temperatures.tolist(), empty)
        result = sums + anchor[:, None] / self._temperatures.astype(np.float32)
        return result.astype(np.float32)


def _spread(
    prior: Floats,
    ids: npt.NDArray[np.int64],
    ceiling: Floats,
    mass: npt.NDArray[np.float64],
    T: float,
) -> Floats:
    """Logits `[N, C]` of the tail: `prior` plus one offset a row that gives it `mass` at T.

    No class that was left out stands above `ceiling`, the smallest kept logit: where the prior
    would lift it, it is held there and the others share what is left.
    """
    shape = np.tile(prior, (len(ids), 1))
    np.put_along_axis(shape, ids, -np.inf, axis=1)
    held = np.zeros(shape.shape, bool)
    while True:
        free = np.where(held, np.float32(-np.inf), shape)
        capped = held.sum(axis=1) * np.exp(np.minimum(ceiling / T - mass, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            left = mass + np.log1p(-np.minimum(capped, 1))
            offset = T * (left - _log_sum(free / T))
            values = (free + offset[:, None]).astype(np.float32)
        over = (values > ceiling[:, None]) & ~held
        if not over.any():
            break
        held |= over
    values[np.isnan(values)] = -np.inf
    return np.where(held, ceiling[:, None], values)


def _log_sum(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    highest = values.max(axis=1)
    anchor = np.where(np.isneginf(highest), np.float32(0), highest)
    sums = np.exp(values - anchor[:, None]).sum(axis=1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(sums) + anchor)
