"""Temperature scaling (Guo et al. 2017, section 4.2): the T that makes stored labels likeliest.

In `b = 1/T` the mean negative log-likelihood `log sum exp(b z) - b z_y` is convex, so Newton's
method inside a bracket finds its one minimum. Each step is one pass over the label set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.errors import DataError

Doubles = npt.NDArray[np.float64]

LOWEST_T, HIGHEST_T = 1 / 64, 64.0
STEPS = 60
PRECISION = 1e-10
# How far aside in b the tail is read for its derivative.
NEARBY = 1e-4


@dataclass
class Descent:
    """Sums over rows at one b: the negative log-likelihood and its two derivatives in b.

    outside: rows whose label is not among the classes that a `topk` set keeps.
    """

    rows: int = 0
    nll: float = 0.0
    slope: float = 0.0
    curvature: float = 0.0
    outside: int = 0


def fit_temperature(pass_at: Callable[[float], Descent], lowest: float = LOWEST_T) -> float:
    """The temperature at which a pass over the labels has no slope; `lowest` to 64.

    Raises DataError where the likelihood rises up to an end of that range.
    """
    low, high = 1 / HIGHEST_T, 1 / lowest
    _refuse_open_end(pass_at(high), pass_at(low), lowest)
    b = min(max(1.0, low), high)
    for _ in range(STEPS):
        here = pass_at(b)
        low, high = (b, high) if here.slope < 0 else (low, b)
        step = here.slope / here.curvature if here.curvature > 0 else 0.0
        following = b - step
        if not low <= following <= high or step == 0:
            following = (low + high) / 2
        if abs(following - b) <= PRECISION * b:
            break
        b = following
    return max(lowest, 1 / following)


def descend(blocks: Iterable[LabelBlock], b: float) -> Descent:
    """One pass over blocks whose rows all have a hard label, at `b = 1/T`."""
    total = Descent()
    for block in blocks:
        labels = block.labels.to_numpy(zero_copy_only=False).astype(np.int64)
        if isinstance(block.codec, TopK):
            add = _of_sparse(block, block.codec, labels, b, total)
        else:
            add = _of_dense(block, labels, b)
        total.rows += len(labels)
        total.nll += float((add.log_sum - add.own).sum())
        total.slope += float((add.mean - add.own_rate).sum())
        total.curvature += float((add.square - add.mean**2).sum())
    return total


class _Terms(NamedTuple):
    """Of each row: the log-weight of its label and that one's derivative in b; the log-sum of all
    weights; mean and mean square of their derivatives under the softmax.
    """

    own: Doubles
    own_rate: Doubles
    log_sum: Doubles
    mean: Doubles
    square: Doubles


def _of_dense(block: LabelBlock, labels: npt.NDArray[np.int64], b: float) -> _Terms:
    """The log-weight of a class is `b z`, its derivative z."""
    z = block.logits().astype(np.float64)
    own = z[np.arange(len(z)), labels]
    if np.isneginf(own).any():
        key = block.keys[int(np.isneginf(own).argmax())].as_py()
        raise DataError(f"key {key!r} is labelled with a class that its teacher masks (-inf)")
    weights = np.exp(b * z)
    z[np.isneginf(z)] = 0.0
    return _Terms(b * own, own, *_moments(z, weights))


def _of_sparse(
    block: LabelBlock, codec: TopK, labels: npt.NDArray[np.int64], b: float, total: Descent
) -> _Terms:
    """The tail is one class more, whose log-weight is linear in b between recorded temperatures.

    A label outside the kept classes has an even share of it, and is counted in `total`.
    """
    kept = block.payload["logits"].astype(np.float64)
    # From T to 1/T and back may round to below the smallest T that the set recorded.
    lowest = min(codec.temperatures)
    tail, nearby = (
        codec.tail_lse(block.payload, max(lowest, 1 / at)) for at in (b, b * (1 - NEARBY))
    )
    with np.errstate(invalid="ignore"):
        rate = np.where(np.isneginf(tail), 0.0, (tail - nearby) / (NEARBY * b))
    z = np.concatenate([kept, rate[:, None]], axis=1)
    weights = np.exp(np.concatenate([b * kept, tail[:, None]], axis=1))
    z[np.isneginf(z)] = 0.0
    hit = block.payload["ids"] == labels[:, None]
    inside = hit.any(axis=1)
    total.outside += int((~inside).sum())
    mine = kept[np.arange(len(kept)), hit.argmax(axis=1)]
    own = np.where(inside, b * mine, tail - np.log(codec.num_classes - codec.k))
    return _Terms(own, np.where(inside, mine, rate), *_moments(z, weights))


def _moments(z: Doubles, weights: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    norm = weights.sum(axis=1)
    weighted = weights * z
    mean = weighted.sum(axis=1) / norm
    square = np.einsum("nc,nc->n", weighted, z) / norm
    return np.log(norm), mean, square


def _refuse_open_end(sharpest: Descent, flattest: Descent, lowest: float) -> None:
    if sharpest.slope < 0:
        raise DataError(
            f"the labels are likelier the lower T is, down to {lowest:g}: the top-1 is (almost) "
            "never wrong here, or T would be below the recorded ones; fit on a held-out label set"
        )
    if flattest.slope > 0:
        raise DataError(
            f"the labels are likelier the higher T is, up to {HIGHEST_T:g}: the teacher knows "
            "nothing of these hard labels; check its class order"
        )
