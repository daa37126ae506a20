"""What a temperature does to stored soft targets: a bounded sample of rows at many temperatures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.evaluation.class_means import ClassMeans, row_classes
from softlabel.pipeline.evaluation.similarity import similarity
from softlabel.pipeline.evaluation.smoothing import SmoothingSums, can_tell, told_apart
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.progress import Progress
from softlabel.pipeline.shards.block import LabelBlock, piece_rows
from softlabel.schemas.soft_targets import SoftTargetProfile, TargetsAtTemperature

ENTROPY_BINS, TOP1_BINS = 24, 20
SIMILARITY_TEMPERATURE = 4.0
# Logits looked at: 8,388 rows of 1,000 classes.
MOST_VALUES = 2**23
FEWEST_ROWS = 256

Doubles = npt.NDArray[np.float64]


class TargetSums:
    """Mean and histogram of entropy and top-1 probability at one temperature."""

    def __init__(self, T: float, classes: int) -> None:
        self.temperature = T
        self._highest = highest_entropy(classes)
        self._rows = 0
        self._entropy = 0.0
        self._top1 = 0.0
        self._entropy_rows = np.zeros(ENTROPY_BINS, np.int64)
        self._top1_rows = np.zeros(TOP1_BINS, np.int64)

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """Count rows of logits `[N, C]`, of any shift."""
        with np.errstate(over="ignore"):  # what is too far below is -inf, without mass
            scaled = logits - logits.max(axis=1, keepdims=True)
            scaled /= np.float32(self.temperature)
        weights = np.exp(scaled)
        norm = weights.sum(axis=1, dtype=np.float64)
        # The entropy is ln norm - sum p d, and a class without mass has no part in it.
        np.copyto(scaled, 0, where=np.isneginf(scaled))
        entropy = np.log(norm) - np.einsum("nc,nc->n", weights, scaled) / norm
        top1 = 1 / norm
        self._rows += len(norm)
        self._entropy += float(entropy.sum())
        self._top1 += float(top1.sum())
        self._entropy_rows += _counts(entropy / self._highest, ENTROPY_BINS)
        self._top1_rows += _counts(top1, TOP1_BINS)

    def record(self) -> TargetsAtTemperature:
        """Means and counts of the rows so far; zeros without a row."""
        rows = max(1, self._rows)
        return TargetsAtTemperature(
            temperature=self.temperature,
            entropy=self._entropy / rows,
            top1=self._top1 / rows,
            entropy_rows=tuple(self._entropy_rows.tolist()),
            top1_rows=tuple(self._top1_rows.tolist()),
        )


def profile_labels(
    labels: LabelSet, temperatures: Sequence[float], progress: Progress
) -> SoftTargetProfile:
    """Soft targets of rows spread evenly over a set without sequences, at each of `temperatures`.

    Of a `topk` set those below its recorded ones are left out.
    """
    classes = labels.num_classes
    lowest = min(labels.temperatures) if labels.manifest.identity.codec == "topk" else 0.0
    at = max(SIMILARITY_TEMPERATURE, lowest)
    curves = [TargetSums(T, classes) for T in temperatures if T >= lowest]
    signs, means = SmoothingSums(classes), ClassMeans.within_memory(classes)
    rows = 0
    progress.start("soft targets", len(labels), "rows")
    for block in _sampled(labels, progress):
        rows += len(block)
        logits = None if isinstance(block.codec, TopK) else block.logits()
        for curve in curves:
            curve.add(block.logits(curve.temperature) if logits is None else logits)
        if means is not None:
            means.add(block.probs(at), row_classes(block))
        if can_tell(block.codec, classes):
            told = told_apart(block.codec, block.payload)
            signs.add(block.probs(1.0), block.top1.astype(np.int64), told)
    return SoftTargetProfile(
        rows=rows,
        of_rows=len(labels),
        temperatures=tuple(curve.record() for curve in curves),
        signs=signs.signs(),
        similarity=None if means is None else similarity(means, labels.classes, at),
    )


def highest_entropy(classes: int) -> float:
    """The entropy of an even distribution, in nats; of a single class that of two, to draw it."""
    return math.log(max(2, classes))


def _sampled(labels: LabelSet, progress: Progress) -> Iterator[LabelBlock]:
    """Every n-th row, with n so large that the work is bounded."""
    most = max(FEWEST_ROWS, MOST_VALUES // labels.num_classes)
    step = max(1, math.ceil(len(labels) / most))
    first = 0
    for block in labels.batches(piece_rows(labels.num_classes)):
        numbers = np.arange(-first % step, len(block), step)
        if len(numbers):
            yield block if step == 1 else block.take(numbers)
        first += len(block)
        progress.advance(len(block))


def _counts(shares: Doubles, bins: int) -> npt.NDArray[np.int64]:
    """How many of `shares`, each from 0 to 1, are in each of `bins` bins (low, high]."""
    edges = np.arange(1, bins) / bins
    return np.bincount(np.searchsorted(edges, shares, side="left"), minlength=bins)
