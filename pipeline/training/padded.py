"""Sequences with their soft labels in tensors, padded to the longest of their batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabel.pipeline.labelset.keys import few
from softlabel.pipeline.teachers.sequence_model import tensors
from softlabel.pipeline.training.batch import JoinedBatch
from softlabel.pipeline.training.targets import Targets
from softlabel.schemas.errors import DataError
from softlabel.schemas.sample import POSITIONS


class SequenceBatch(NamedTuple):
    """N sequences with the soft labels of their P positions that are no padding.

    inputs: `[N, L]` each, by name, padded with zeros. mask: bool `[N, L]`, which positions are no
    padding: `logits[mask]` of logits `[N, L, C]` are `[P, C]`, one sequence's after the other, as
    targets and hard_labels are. targets: for `DistillationLoss`; None without a label set.
    hard_labels: int64 `[P]`, -100 where unknown. keys: strings `[N]`. seen: how many samples of the
    epoch all ranks together have had with this step.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    targets: Targets | None
    hard_labels: Tensor
    keys: npt.NDArray[np.object_]
    seen: int


def padded_batch(batch: JoinedBatch, targets: Targets | None, seen: int) -> SequenceBatch:
    """Joined sequences in tensors. Raises DataError where every position is padding."""
    keys = batch.keys.to_numpy(zero_copy_only=False)
    if not len(batch.labels):
        raise DataError(
            f"DistillationDataset: of {few(keys.tolist())} every position is padding; leave such "
            "rows out, or take larger batches"
        )
    inputs = tensors(batch.pixels)
    mask = inputs.pop(POSITIONS)
    return SequenceBatch(inputs, mask, targets, torch.from_numpy(batch.labels), keys, seen)
