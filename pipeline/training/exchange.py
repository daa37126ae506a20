"""When predictions are published and used, and what several label sets say of a batch together.

A student that teaches itself (PS-KD) is one that exchanges predictions with itself alone, after
every epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.mean import Mean, narrowed
from softlabel.pipeline.training.batch import TrainingBatch


@dataclass(frozen=True, slots=True)
class Exchange:
    """When predictions are published: at the ends of which epochs, counted from 0, or within them.

    burn_in: epochs without a teacher; the last of them is the first to be published. every: epochs
    from one publication to the next, so how old a teacher's predictions may become. steps: in place
    of that, within the epochs after the burn-in, steps from one to the next at most.
    """

    burn_in: int = 1
    every: int = 1
    steps: int | None = None

    def publishes(self, epoch: int) -> bool:
        """Whether what is said in `epoch` is published at its end."""
        later = epoch + 1 - self.burn_in
        return later >= 0 and later % self.every == 0

    def taught_by(self, epoch: int) -> int | None:
        """The epoch whose published predictions teach in `epoch`; None during the burn-in."""
        if epoch < self.burn_in:
            return None
        return epoch - 1 - (epoch - self.burn_in) % self.every

    def spans(self, epoch: int, own: int, most: int) -> list[tuple[int, int]]:
        """The steps from one publication to the next, `first` to `end`, of an epoch of `own` steps.

        most: the steps of the member that has the most: all members have as many spans, of which
        some may be empty.
        """
        parts = 1 if self.steps is None or epoch < self.burn_in else math.ceil(most / self.steps)
        return list(itertools.pairwise(own * number // parts for number in range(parts + 1)))


def taught(batch: TrainingBatch, sets: Sequence[LabelSet], T: float) -> TrainingBatch:
    """The batch with the mean of what `sets` say of its keys, for use at T.

    With `p = mean of softmax(z / T)` its logits are `T log p` (Anil et al. 2018, section 2: the
    teacher is the average of the other models' predictions). Raises DataError for a key that a
    set does not hold.
    """
    logits = [labels.lookup(batch.keys).logits(T) for labels in sets]
    mean = logits[0] if len(logits) == 1 else _mean(logits, T)
    return replace(batch, teacher=mean, sparse=None, factored=None)


def _mean(logits: Sequence[Floats], T: float) -> Floats:
    members = [values.astype(np.float64) for values in logits]
    return narrowed(Mean.of_members(len(members), (), T).logits(members))
