"""Figures of classifiers: how right, how well calibrated, how far apart, over which seeds."""

from __future__ import annotations

from typing import Literal

from softlabel.schemas.model import Record


class Bin(Record):
    """One bin of a reliability diagram: confidences in (low, high]; means are null when empty."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


class ClassifierFigures(Record):
    """How right and how well calibrated a classifier is.

    nll, entropy: means in nats; brier: mean over rows of the squared distance to the one-hot label
    (Brier 1950). ece, mce: expected and largest gap of accuracy and confidence over equal-width
    bins (Guo et al. 2017, eq. 3 and 5); classwise_ece: the mean over classes of the gap of each
    class's probability and frequency (Kull et al. 2019, section 2); adaptive_ece: over bins of
    equal mass (Nixon et al. 2019). aurc: area under the risk-coverage curve (Geifman & El-Yaniv
    2017); excess_aurc: less that of the best order (Geifman et al. 2019).
    """

    accuracy: float
    top5_accuracy: float
    nll: float
    brier: float
    ece: float
    mce: float
    classwise_ece: float
    adaptive_ece: float
    aurc: float
    excess_aurc: float
    entropy: float


class PairFigures(Record):
    """How far two models are apart at T = 1, means over the same rows.

    agreement: share of rows with the same top-1. kl: KL(first || second) in nats.
    total_variation: `sum |p - q| / 2`, the share of probability that changed its class.
    """

    agreement: float
    kl: float
    total_variation: float


class ClassShares(Record):
    """Shares by class of the hard label, all seeds together; null where a class has no sample.

    rows: samples of each, seeds counted one by one. agreement: with the label set's top-1, null
    without one.
    """

    rows: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    agreement: tuple[float | None, ...] | None


class Projection(Record):
    """Samples of three classes on the plane through these classes' templates (Müller et al. 2019).

    through: `means` where it passes through the classes' mean features, for want of templates.
    labels: which of the three each sample is of, 0 to 2. spread: the root mean square distance of a
    sample to its class's centre over the mean distance of the centres; null where not all three
    have samples.
    """

    classes: tuple[str, str, str]
    labels: tuple[int, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: float | None
    through: Literal["templates", "means"] = "templates"


class Spread(Record):
    """Mean over seeds and its standard error; the error is null for a single seed."""

    mean: float
    standard_error: float | None
