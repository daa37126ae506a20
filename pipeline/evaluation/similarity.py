"""Which classes look alike to a teacher, learned from its mean soft target of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.evaluation.class_means import ClassMeans
from softlabel.schemas.soft_targets import ClassSimilarity

SHOWN_CLASSES = 24

Doubles = npt.NDArray[np.float64]


def similarity(means: ClassMeans, classes: Sequence[str], T: float) -> ClassSimilarity:
    """The classes' shares in each other's soft targets at T; all of few, the most alike of many."""
    shares = means.means()
    both = shares + shares.T
    np.fill_diagonal(both, -1)
    shown = list(range(len(classes)))
    if len(classes) > SHOWN_CLASSES:
        shown = _neighbours_together(both, _most_alike(both))
    return ClassSimilarity(
        temperature=T,
        classes=tuple(classes[index] for index in shown),
        shares=tuple(
            tuple(shares[index, shown].tolist()) if means.rows[index] else None for index in shown
        ),
    )


def _most_alike(both: Doubles) -> list[int]:
    """The classes of the pairs with the largest shares, until enough are found."""
    upper = np.triu(both, 1).ravel()
    count = min(len(upper), SHOWN_CLASSES**2)
    best = np.argpartition(-upper, count - 1)[:count]
    found: dict[int, None] = {}
    for place in best[np.lexsort((best, -upper[best]))].tolist():
        pair = [index for index in divmod(place, len(both)) if index not in found]
        if len(found) + len(pair) > SHOWN_CLASSES:
            break
        found |= dict.fromkeys(pair)
    return list(found)


def _neighbours_together(both: Doubles, chosen: Sequence[int]) -> list[int]:
    """The chosen classes in an order in which each is followed by the one most like it."""
    left = list(chosen)
    order = [left.pop(0)]
    while left:
        order.append(left.pop(int(both[order[-1], left].argmax())))
    return order
