"""The codec `topk`: the k largest logits of a row, and the mass of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.codec import (
    NEAREST_BELOW_ZERO,
    Column,
    Columns,
    ShiftedRows,
    to_half,
)
from softlabel.pipeline.codecs.numerics import Floats, id_dtype, largest, log_sums

# Below this, exp is no normal float64 any more: a class keeps a share, however small.
LEAST_LOG_WEIGHT = -700.0
# Values of a tail written at a time, in float64: few enough for the cache.
SPREAD_VALUES = 2**17


class PriorOrder(NamedTuple):
    """A class prior in falling order: how far each place is below the first, `[C]` float64.

    rank: the place of each class, int64 `[C]`.
    """

    below: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]


def prior_order(prior: Floats) -> PriorOrder:
    """The order of a class prior; among equals the lower id stands first."""
    order = np.argsort(-prior, kind="stable")
    rank = np.empty(len(prior), np.int64)
    rank[order] = np.arange(len(prior))
    return PriorOrder(prior[order].astype(np.float64) - prior.max(), rank)


class TopK:
    """`topk`: the k largest logits in float16, and the log-sum of the rest at each temperature.

    Kept and tail sum to one by construction. Between recorded temperatures the tail's log-sum is
    interpolated in 1/T, where it is convex, with the end point ln(C-k) at 1/T = 0; below the
    smallest recorded temperature it is an error. The tail is spread evenly, or, given a `prior`
    (a finite logit a class), by its softmax at T over the classes that were left out; neither
    lifts a class above the smallest one kept.
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
        if prior is not None and (prior.shape != (num_classes,) or not np.isfinite(prior).all()):
            raise ValueError(f"prior must be {num_classes} finite logits, one a class")
        self.k = k
        self.num_classes = num_classes
        self.prior = prior
        self.temperatures = tuple(temperatures)
        self.columns = (
            Column("ids", id_dtype(num_classes), k),
            Column("logits", np.dtype(np.float16), k),
            Column("tail_lse", np.dtype(np.float32), len(temperatures)),
        )

    def encode(self, rows: ShiftedRows) -> Columns:
        """Columns `ids` `[N, k]`, `logits` `[N, k]`, `tail_lse` `[N, K]`.

        A tail with masked classes among others is refused: it would give them a share.
        """
        order = largest(rows.d, self.k + 1)
        ids = order[:, :-1]
        places = order + np.arange(len(order))[:, None] * self.num_classes
        highest = rows.d.reshape(-1)[places]
        kept = np.ascontiguousarray(highest[:, :-1])
        if rows.masked:
            lost = np.isneginf(rows.d).sum(axis=1) - np.isneginf(kept).sum(axis=1)
            _refuse_masked(lost, self.num_classes - self.k)
        tail = rows.d.copy()
        tail.reshape(-1)[places[:, :-1]] = -np.inf
        return {
            "ids": ids.astype(id_dtype(self.num_classes)),
            "logits": to_half(kept, kept[:, -1]),
            "tail_lse": self._tail_sums(tail, highest[:, -1]),
        }

    def logits(self, columns: Columns, T: float) -> Floats:
        """The kept logits, and for the rest values that give the tail its mass at T."""
        kept = columns["logits"].astype(np.float32)
        ids = columns["ids"].astype(np.int64)
        mass = self.tail_lse(columns, T)
        full = np.empty((len(kept), self.num_classes), np.float32)
        # Rounding must not lift a class that was left out above one that was kept, nor tie it with
        # the arg-max.
        ceiling = np.minimum(kept[:, -1], np.float32(NEAREST_BELOW_ZERO))
        if self.prior is None:
            level = T * (mass - np.log(self.num_classes - self.k))
            full[:] = np.minimum(level, ceiling)[:, None]
        else:
            _spread(full, prior_order(self.prior), ids, ceiling.astype(np.float64), mass, T)
        np.put_along_axis(full, ids, kept, axis=1)
        return full

    def tail_lse(self, columns: Columns, T: float) -> npt.NDArray[np.float64]:
        """`logsumexp(d / T)` over the classes that were not kept, `[N]`."""
        upper, lower, weight = self.interpolation(T)
        right = columns["tail_lse"][:, upper].astype(np.float64)
        if weight == 1:
            return right
        if lower is None:
            left = np.full_like(right, np.log(self.num_classes - self.k))
        else:
            left = columns["tail_lse"][:, lower].astype(np.float64)
        return np.where(np.isneginf(right), right, (1 - weight) * left + weight * right)

    def interpolation(self, T: float) -> tuple[int, int | None, float]:
        """The recorded temperatures around T, below and above, and the weight of the one below.

        As numbers of columns; None is the end point at 1/T = 0. Raises ValueError where T is
        below all of them.
        """
        lowest = min(self.temperatures)
        if T < lowest:
            raise ValueError(
                f"temperature {T:g} is below {lowest:g}, the smallest that this topk set recorded"
            )
        upper = max((t, i) for i, t in enumerate(self.temperatures) if t <= T)
        above = [(t, i) for i, t in enumerate(self.temperatures) if t > T]
        far, lower = (1 / min(above)[0], min(above)[1]) if above else (0.0, None)
        return upper[1], lower, (1 / T - far) / (1 / upper[0] - far)

    def narrow(self, columns: Columns, k: int) -> Columns:
        """The columns of `topk` with a smaller k; what is dropped joins the tail.

        They are those of encoding with that k, but that the dropped logits were rounded to
        float16. Raises ValueError where k is not from 1 to this codec's, and as `encode` does.
        """
        if not 1 <= k <= self.k:
            raise ValueError(f"k must be from 1 to {self.k}, which the labels keep, got {k}")
        if k == self.k:
            return columns
        dropped = columns["logits"][:, k:].astype(np.float32)
        tail_lse = columns["tail_lse"]
        emptied = np.isneginf(tail_lse).any(axis=1)
        lost = np.isneginf(dropped).sum(axis=1) + emptied * (self.num_classes - self.k)
        _refuse_masked(lost, self.num_classes - k)
        return {
            "ids": columns["ids"][:, :k],
            "logits": columns["logits"][:, :k],
            "tail_lse": np.logaddexp(tail_lse, self._tail_sums(dropped, dropped[:, 0].copy())),
        }

    def _tail_sums(self, tail: Floats, highest: Floats) -> Floats:
        """Log-sums around the tail's own maximum `highest`; `tail` is overwritten.

        So a small tail does not vanish beside the classes that were kept.
        """
        empty = np.isneginf(highest)
        anchor = np.where(empty, np.float32(0), highest)
        with np.errstate(over="ignore"):  # what is too far below is -inf, without mass
            tail -= anchor[:, None]
        sums = log_sums(tail, self.temperatures, empty)
        result = sums + anchor[:, None] / np.asarray(self.temperatures, np.float32)
        return result.astype(np.float32)


def _refuse_masked(lost: npt.NDArray[np.integer], tail: int) -> None:
    """Raise ValueError where `lost` of the `tail` classes left out are masked, but not all."""
    bad = (lost > 0) & (lost < tail)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError("logits hold -inf among classes that topk leaves out", row)


def _spread(
    full: Floats,
    prior: PriorOrder,
    ids: npt.NDArray[np.int64],
    ceiling: npt.NDArray[np.float64],
    mass: npt.NDArray[np.float64],
    T: float,
) -> None:
    """Fill `full` `[N, C]`: the prior plus one offset a row that gives the tail its `mass` at T.

    No class that was left out stands above `ceiling`: where the prior would lift it, it is held
    there and the others share what is left.
    """
    log_weights = np.maximum(prior.below / T, LEAST_LOG_WEIGHT)
    offset = T * _offsets(np.exp(log_weights), prior.rank[ids], ceiling / T, mass)
    shape = T * log_weights[prior.rank]
    step = max(1, SPREAD_VALUES // len(shape))
    for first in range(0, len(full), step):
        part = slice(first, first + step)
        values = np.add.outer(offset[part], shape)
        np.minimum(values, ceiling[part, None], out=full[part], casting="same_kind")


def _offsets(
    weights: npt.NDArray[np.float64],
    places: npt.NDArray[np.int64],
    ceiling: npt.NDArray[np.float64],
    mass: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """What to add to the logarithms of `weights` `[C]`, which fall, but those at `places` `[N, k]`.

    Their sum is then exp(mass) with none above exp(ceiling), by water filling: the classes held
    at the ceiling are the first ones, and a binary search finds how many. +inf where all are.
    """
    classes, tail = len(weights), len(weights) - places.shape[1]
    sums = np.cumsum(weights[::-1])[::-1]
    kept = np.sort(places, axis=1)
    # How many classes left out stand before each kept one, and what it and those behind weigh.
    before = kept - np.arange(kept.shape[1])
    kept_sums = np.zeros((len(kept), kept.shape[1] + 1))
    kept_sums[:, :-1] = np.cumsum(weights[kept][:, ::-1], axis=1)[:, ::-1]
    # The tail's mass in units of a class at the ceiling.
    lift = np.where(np.isneginf(mass), -np.inf, mass - ceiling)
    units = np.exp(np.minimum(lift, -LEAST_LOG_WEIGHT))

    def free(held: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The place of the first class after `held` ones, and the weight from it on."""
        passed = (before <= held[:, None]).sum(axis=1)
        place = np.minimum(held + passed, classes - 1)
        return place, sums[place] - kept_sums[np.arange(len(held)), passed]

    held, most = np.zeros(len(kept), np.int64), np.full(len(kept), tail)
    for _ in range(tail.bit_length()):
        middle = (held + most) // 2
        place, rest = free(middle)
        fits = ((units - middle) * weights[place] <= rest) | (held == most)
        held, most = np.where(fits, held, middle + 1), np.where(fits, middle, most)
    _, rest = free(np.minimum(held, tail - 1))
    left = np.log(np.maximum(units - held, np.finfo(np.float64).tiny))
    # Where nothing is held the mass may be far too small for a number that is no logarithm.
    offset = np.where(held == 0, mass, ceiling + left) - np.log(rest)
    return np.where(held == tail, np.inf, offset)
