"""What stored soft targets look like, as figures that reports print and draw."""

from __future__ import annotations

from typing import Final

from softlabel.schemas.model import Record

SMOOTHED: Final = (
    "the teacher looks trained with label smoothing, which hurts distillation at T > 1 "
    "(Müller et al. 2019; disputed by Shen et al. 2021)"
)
# Between what small convolutional teachers gave on digits when trained with a smoothing of 0.1 and
# without (docs/benchmarks.md): said only where it is clear.
SMOOTHED_MASS: Final = (0.02, 0.4)
SMOOTHED_STEADINESS: Final = 0.5
SMOOTHED_EVENNESS: Final = 0.88


class SmoothingSigns(Record):
    """Signs of a teacher trained with label smoothing, in its soft targets at T = 1.

    non_target_mass: mean of `m = 1 - p` of the top-1. steadiness: `(mean m)^2 / mean m^2`, 1 where
    every row has the same m. evenness: entropy of the other classes' shares of m over its largest
    value, mean over the rows; of `topk` among the kept. stability: 1 less the mean squared distance
    of a row's targets to the mean of its class, every class counting alike (Shen et al. 2021);
    null where there are too many classes to keep the means of.
    """

    rows: int
    non_target_mass: float
    steadiness: float
    evenness: float
    stability: float | None

    @property
    def smoothed(self) -> bool:
        """Whether all signs are there: a mass that is not small, and as steady as it is even."""
        low, high = SMOOTHED_MASS
        return (
            low <= self.non_target_mass <= high
            and self.steadiness >= SMOOTHED_STEADINESS
            and self.evenness >= SMOOTHED_EVENNESS
        )


class TargetsAtTemperature(Record):
    """Soft targets at one T: mean entropy in nats, mean top-1 probability, and rows in each bin.

    entropy_rows: bins of equal width from 0 to ln C. top1_rows: from 0 to 1. Each is (low, high],
    the first one with its low end.
    """

    temperature: float
    entropy: float
    top1: float
    entropy_rows: tuple[int, ...]
    top1_rows: tuple[int, ...]


class ClassSimilarity(Record):
    """What samples of one class look like besides, in soft targets at T.

    classes: the names shown, chosen by the largest shares where there are too many. shares: of each
    of these classes the mean soft target of the samples of each of them, a row a class; null where
    a class has no sample.
    """

    temperature: float
    classes: tuple[str, ...]
    shares: tuple[tuple[float, ...] | None, ...]


class SoftTargetProfile(Record):
    """A label set's soft targets over temperatures; rows: those looked at, spread evenly over all.

    similarity: null where there are too many classes. signs: null where topk recorded no T = 1 or
    keeps too few classes to tell.
    """

    rows: int
    of_rows: int
    temperatures: tuple[TargetsAtTemperature, ...]
    signs: SmoothingSigns | None
    similarity: ClassSimilarity | None
