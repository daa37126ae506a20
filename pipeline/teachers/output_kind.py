"""A teacher's output as logits: real classifiers also give probabilities, or their logarithms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softlabel.schemas.errors import DataError
from softlabel.schemas.sample import Logits
from softlabel.schemas.teacher import PROBABILITY_FLOOR, OutputKind

# How far the sum of a row's probabilities may be from 1: float16 arithmetic in the graph is.
SUM_TOLERANCE = 1e-2
# Logits that sum to 1 like this by chance are not met; probabilities in float32 are this close.
LIKELY_TOLERANCE = 1e-4


def as_logits(values: Logits, kind: OutputKind) -> Logits:
    """The logits `[N, C]` whose softmax is what the teacher said.

    Of probabilities the logarithm, where they are below `PROBABILITY_FLOOR` that of the floor; a
    negative one becomes NaN. Log-probabilities are logits as they are.
    """
    if kind != "probabilities":
        return values
    with np.errstate(invalid="ignore"):
        return np.log(np.where(values >= 0, np.maximum(values, PROBABILITY_FLOOR), np.nan))


def check_kind(values: Logits, kind: OutputKind, path: Path) -> None:
    """Raise DataError where the values `[N, C]` of a batch cannot be of this kind.

    Rows that hold NaN are left to who names their keys.
    """
    rows = values[~np.isnan(values).any(axis=1)].astype(np.float64)
    if not len(rows):
        return
    if kind == "logits":
        if rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() <= LIKELY_TOLERANCE:
            raise DataError(
                f"{path}: gives probabilities (every row sums to 1) and is said to give logits; "
                "pass --output-kind probabilities, or export it so"
            )
        return
    with np.errstate(invalid="ignore"):
        probabilities = rows if kind == "probabilities" else np.exp(rows)
    if probabilities.min() < 0:
        raise DataError(
            f"{path}: is said to give probabilities and gives {rows.min():.4g}; pass --output-kind "
            "logits, or export it so"
        )
    sums = probabilities.sum(axis=1)
    if not np.abs(sums - 1).max() <= SUM_TOLERANCE:
        raise DataError(
            f"{path}: is said to give {kind}, and those of its rows sum to {sums.min():.4g} to "
            f"{sums.max():.4g}, not 1; pass --output-kind logits if it gives logits; several "
            "labels a sample (sigmoid outputs) are not supported"
        )
