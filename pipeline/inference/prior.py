"""The class prior that spreads the tail of `topk`: what a teacher says of the classes left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.numerics import largest
from softlabel.pipeline.inference.plan import batches
from softlabel.pipeline.inference.runner import naming_the_key, shift_output
from softlabel.pipeline.inference.usable import read_slots
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.labelset import Segment, ShardPlan, SourceFile
from softlabel.schemas.params.shared import OnBadSample
from softlabel.schemas.sample import Logits, RunTeacher

# Rows that a prior is taken from, however large the batches that the teacher runs in.
PRIOR_ROWS = 4096
# Runs of consecutive rows that the samples come in: each may cost the reading of a row group.
PLACES = 512
TEMPERATURE = 2.0
LEAST_SHARE = 1e-30
# Finer than what so few samples tell; more digits would only make a longer plan.
DECIMALS = 3


def sampled_prior(
    source: Source,
    run_teacher: RunTeacher,
    batch_size: int,
    k: int,
    on_bad: OnBadSample = "stop",
) -> tuple[float, ...]:
    """The class prior from up to 4,096 samples, spread over the whole source.

    on_bad: as for the run. Raises DataError, naming the key, where the teacher gives no soft
    target.
    """
    prior = TailPrior(len(source.classes), k)
    sample = sampled(source.files, PRIOR_ROWS, source.views)
    for batch in batches(sample, batch_size, source.views):
        usable = read_slots(source, batch, on_bad).run(run_teacher)
        if usable is None:
            continue
        samples, output = usable
        with naming_the_key(samples.keys, samples.lengths):
            prior.add(shift_output(output).d)
    return prior.logits()


class TailPrior:
    """What the classes share of the mass outside the k largest, on the mean of rows.

    `prior_c = T ln(sum of p_c / sum of m)` at T = 2, both sums over the rows that leave c out: p
    is their softmax at T, and m its mass outside the k largest. So weighted, a row counts as much
    as its tail does in the divergence: with nothing held at a ceiling and every class left out of
    every row, `KL(p || q) = const - sum of p_c ln q_c` over the tail is least for exactly these
    shares.

    Measured, mean KL as a part of the uniform tail's at T = 1, 2, 4, 8, on rows that were not
    sampled: next-word model of 1,000 words 0.74, 0.64, 0.63, 0.65 (k = 10) and 0.84, 0.72, 0.70,
    0.70 (k = 64); Fashion-MNIST, 10 classes, 0.30, 0.37, 0.48, 0.58 (k = 3). Other vectors, same
    words and k = 10: mean shifted logit 1.14, 0.77, 0.63, 0.60; ln of the mean softmax at T = 1
    0.83, 0.71, 0.73, 0.77, at T = 2 0.98, 0.68, 0.64, 0.66 (both 0.98 or more on Fashion-MNIST,
    where every class leads some rows).
    """

    def __init__(self, num_classes: int, k: int) -> None:
        self._k = k
        self._shares = np.zeros(num_classes, np.float64)
        self._mass = np.zeros(num_classes, np.float64)

    def add(self, d: Logits) -> None:
        """Count rows of shifted logits `[N, C]`."""
        ids = largest(d, self._k)
        probs = np.exp(d.astype(np.float64) / TEMPERATURE)
        probs /= probs.sum(axis=1, keepdims=True)
        np.put_along_axis(probs, ids, 0, axis=1)
        mass = probs.sum(axis=1)
        kept = np.bincount(ids.reshape(-1), np.repeat(mass, self._k), len(self._mass))
        self._shares += probs.sum(axis=0)
        self._mass += mass.sum() - kept

    def logits(self) -> tuple[float, ...]:
        """A finite logit a class, the largest 0; equal where the rows had no tail."""
        known: npt.NDArray[np.bool_] = self._mass > LEAST_SHARE * max(1, self._mass.max())
        shares = np.divide(self._shares, self._mass, out=np.zeros_like(self._mass), where=known)
        highest = shares.max()
        if not highest > 0:
            return (0.0,) * len(shares)
        # A class that no row left out stands, where one will, next to the kept ones.
        shares[~known] = highest
        logits = TEMPERATURE * np.log(np.maximum(shares / highest, LEAST_SHARE))
        return tuple(np.round(logits, DECIMALS).tolist())


def sampled(
    files: Sequence[SourceFile], rows: int, views: int = 1, places: int = PLACES
) -> ShardPlan:
    """Samples from `places` places of the files, with about `rows` label rows in all."""
    segments = tuple(spread_rows(files, -(-rows // views), places))
    count = views * sum(segment.rows for segment in segments)
    return ShardPlan(name="sample", rows=count, segments=segments)


def spread_rows(files: Sequence[SourceFile], rows: int, places: int = PLACES) -> list[Segment]:
    """About `rows` rows of the files, in order: runs at `places` places in equal distances, or all.

    A pure function of the files, so that the same source gives the same samples.
    """
    bounds = np.cumsum([0, *(file.rows for file in files)])
    total = int(bounds[-1])
    if rows >= total:
        return [Segment(source=file.name, first=0, rows=file.rows) for file in files if file.rows]
    length = -(-rows // places)
    places = rows // length
    segments = []
    for start in (place * total // places for place in range(places)):
        left = length
        while left:
            file = int(np.searchsorted(bounds, start, side="right")) - 1
            taken = min(left, int(bounds[file + 1]) - start)
            first = start - int(bounds[file])
            segments.append(Segment(source=files[file].name, first=first, rows=taken))
            start, left = start + taken, left - taken
    return segments
