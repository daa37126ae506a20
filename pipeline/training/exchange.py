"""When predictions are published and used, and what several label sets say of a batch together.

A student that teaches itself (PS-KD) is one that exchanges predictions with itself alone, after
every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.mean import Mean, narrowed
from softlabel.pipeline.training.batch import TrainingBatch


@dataclass(frozen=True, slots=True)
class Exchange:
    """At the ends of which epochs, counted from 0, predictions are published.

    burn_in: epochs without a teacher; the last of them is the first to be published. every: epochs
    from one publication to the next, so how old a teacher's predictions may become.
    """

    burn_in: int = 1
    every: int = 1

    def publishes(self, epoch: int) -> bool:
        """Whether what is said in `epoch` is published at its end."""
        later = epoch + 1 - self.burn_in
        return later >= 0 and later % self.every == 0

    def taught_by(self, epoch: int) -> int | None:
        """The epoch whose published predictions teach in `epoch`; None during the burn-in."""
        if epoch < self.burn_in:
            return None
        return epoch - 1 - (epoch - self.burn_in) % self.every


def taught(batch: TrainingBatch, sets: Sequence[LabelSet], T: float) -> TrainingBatch:
    """The batch with the mean of what `sets` say of its keys, for use at T.

    With `p = mean of softmax(z / T)` its logits are `T log p` (Anil et al. 2018, section 2: the
    teacher is the average of the other models' predictions). Raises DataError for a key that a
    set does not hold.
    """
    logits = [labels.lookup(batch.keys).logits(T) for labels in sets]
    mean = logits[0] if len(logits) == 1 else _mean(logits, T)
    return replace(batch, teacher=mean, sparse=None)


def _mean(logits: Sequence[Floats], T: float) -> Floats:
    members = [values.astype(np.float64) for values in logits]
    return narrowed(Mean.of_members(len(members), (), T).logits(members))
